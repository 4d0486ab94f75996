"use strict";

/* Data of the report and helpers that the other files use. page.py joins the page.*.js files into one script. */

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs.map((run, index) => ({ ...run, index, searchText: searchText(run) }));
const byId = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)").matches;
const COLOURS = 8;
const STROKES = [["solid", "solid"], ["dash", "dashed"], ["dot", "dotted"]]; // names in Plotly and in CSS

let shown = runs; // runs that match the filter, in table order

/* Create an element. Strings are added as text, not as HTML, because run names and settings are untrusted. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/* Escape HTML, because Plotly interprets some tags. */
function escapeHtml(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function searchText(run) {
  const settings = Object.entries(run.settings).map(([key, value]) => `${key}=${value}`);
  return [run.name, ...settings].join(" ").toLowerCase();
}

function settingsText(run) {
  return Object.entries(run.settings).map(([key, value]) => `${key}=${value}`).join(", ");
}

/* Format a number with four digits. Trailing zeros are kept so that the digits of a column are aligned. */
function formatNumber(value) {
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e4 || size < 1e-3) ? value.toExponential(2) : value.toPrecision(4);
}

function formatDuration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function strokeOf(run) {
  return STROKES[Math.floor(run.index / COLOURS) % STROKES.length];
}

function swatch(run) {
  const mark = element("span", { class: "swatch", "aria-hidden": "true" });
  mark.style.setProperty("--colour", `var(--c${run.index % COLOURS})`);
  mark.style.setProperty("--dash", strokeOf(run)[1]);
  return mark;
}
