"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs.map((run, index) => ({ ...run, index, searchText: searchText(run) }));
const byId = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)").matches;
const COLOURS = 8;
const STROKES = [["solid", "solid"], ["dash", "dashed"], ["dot", "dotted"]]; // Plotly's name, CSS's name

let shown = runs; // the runs that match the filter, in the order of the table

/* Adds strings as text, never as HTML, because names of runs and values of settings are untrusted. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/* Escapes text, because Plotly interprets some HTML tags. */
function plain(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function searchText(run) {
  const settings = Object.entries(run.settings).map(([key, value]) => `${key}=${value}`);
  return [run.name, ...settings].join(" ").toLowerCase();
}

function difference(run) {
  return Object.entries(run.settings).map(([key, value]) => `${key}=${value}`).join(", ");
}

/* Four digits including trailing zeros, so that the digits line up in a column. */
function figure(value) {
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e4 || size < 1e-3) ? value.toExponential(2) : value.toPrecision(4);
}

function duration(seconds) {
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

/* --- the table ------------------------------------------------------------------------------------------------- */

const columns = [
  { key: "run", title: "run", value: (run) => run.name },
  ...data.settings.map((key) => ({ key, title: key, value: (run) => asNumber(run.settings[key]) })),
  ...data.metrics.map(({ name, higher }) => ({
    key: name,
    title: name,
    number: true,
    better: higher ? "higher" : "lower",
    value: (run) => run.scores[name]?.value ?? null,
    cell: (run) => score(run.scores[name]),
  })),
  { key: "final_loss", title: "final loss", number: true, value: (run) => run.loss, text: figure },
  {
    key: "steps",
    title: "steps",
    number: true,
    value: (run) => run.steps,
    text: (steps, run) => (unfinished(run) ? `${steps} of ${run.planned}` : String(steps)),
  },
  { key: "seconds", title: "time", number: true, value: (run) => run.seconds, text: duration },
  { key: "images_per_second", title: "images/s", number: true, value: (run) => run.speed, text: (x) => String(Number(x.toPrecision(3))) },
];
const sorting = { column: null, descending: false };

function asNumber(text) {
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function unfinished(run) {
  return run.planned !== null && run.steps < run.planned;
}

function score(found) {
  if (!found) return null;
  const interval = found.interval ? `${figure(found.interval[0])} to ${figure(found.interval[1])}` : null;
  const at = found.step === null ? found.how : `step ${found.step}, ${found.how}`;
  const cell = element("td", { class: "number", title: at }, figure(found.value));
  if (interval) cell.append(element("small", {}, interval));
  return cell;
}

function cellOf(column, run) {
  const value = column.value(run);
  const kind = column.number ? "number" : "text";
  if (value === null) return element("td", { class: `${kind} none` }, column.key === "final_loss" && run.diverged ? "nan" : "–");
  if (column.cell) return column.cell(run);
  return element("td", { class: kind, title: column.number ? null : value }, column.text ? column.text(value, run) : String(run.settings[column.key]));
}

function rowOf(run) {
  const state = run.diverged ? "diverged" : unfinished(run) ? "unfinished" : null;
  const badge = state && element("span", { class: `state ${state}` }, state);
  const head = element("th", { scope: "row", title: run.path }, swatch(run), run.name, badge);
  const row = element("tr", {}, head, ...columns.slice(1).map((column) => cellOf(column, run)));
  columns.forEach((column, i) => {
    if (column.better && column.value(run) !== null && column.value(run) === best(column)) row.children[i].classList.add("best");
  });
  return row;
}

function best(column) {
  const values = runs.map(column.value).filter((value) => value !== null);
  if (values.length < 2) return null;
  return column.better === "higher" ? Math.max(...values) : Math.min(...values);
}

function compare(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null); // missing values always come last
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return descending ? -order : order;
}

function buildHead() {
  const heads = columns.map((column) => {
    const arrow = column.better ? `, ${column.better} is better` : "";
    const button = element("button", { type: "button", title: `sort by ${column.title}${arrow}` }, column.title);
    button.addEventListener("click", () => {
      sorting.descending = sorting.column === column && !sorting.descending;
      sorting.column = column;
      update();
    });
    return element("th", { scope: "col", class: column.number ? "number" : null }, button);
  });
  document.querySelector("thead").append(element("tr", {}, ...heads));
}

function showTable() {
  columns.forEach((column, i) => {
    const head = document.querySelectorAll("thead th")[i];
    if (column === sorting.column) head.setAttribute("aria-sort", sorting.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  document.querySelector("tbody").replaceChildren(...shown.map(rowOf));
}

/* --- plots ----------------------------------------------------------------------------------------------------- */

const CONFIG = {
  displaylogo: false,
  responsive: true,
  displayModeBar: coarse ? true : "hover",
  modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]], // no button that uploads data
};

function theme() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const axis = { gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
  const layout = {
    paper_bgcolor: colour("raised"),
    plot_bgcolor: colour("raised"),
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("muted") },
    margin: { l: 56, r: 16, t: 36, b: 56 },
    showlegend: false,
    hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("line"), font: { color: colour("ink") }, namelength: -1 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("muted"), activecolor: colour("accent") },
    dragmode: coarse ? false : "zoom", // touch scrolls the page
  };
  return { colour, axis, layout };
}

function smoothed(losses, weight) {
  let mean = 0;
  let total = 0;
  return losses.map((loss) => {
    if (loss === null) return null;
    mean = weight * mean + (1 - weight) * loss;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}

function showCurves() {
  if (byId("loss").hidden) return;
  const { colour, axis, layout } = theme();
  const weight = Number(byId("smooth").value);
  const logarithmic = byId("log").checked;
  const traces = shown.map((run) => ({
    type: "scatter",
    mode: run.curve.steps.length === 1 ? "markers" : "lines",
    name: plain([run.name, difference(run)].filter(Boolean).join(": ")),
    x: run.curve.steps,
    y: smoothed(run.curve.losses, weight),
    line: { color: colour(`c${run.index % COLOURS}`), width: 1.6, dash: strokeOf(run)[0] },
    hovertemplate: "step %{x}, loss %{y:.4g}<extra>%{fullData.name}</extra>",
  }));
  Plotly.react(byId("curves"), traces, {
    ...layout,
    uirevision: `${logarithmic}`, // keeps the zoom
    xaxis: { ...axis, title: { text: "step", standoff: 8 } },
    yaxis: { ...axis, title: { text: "loss", standoff: 8 }, type: logarithmic ? "log" : "linear", nticks: 7 },
  }, CONFIG);
  byId("legend").replaceChildren(...shown.map((run) => element("li", {}, swatch(run), [run.name, difference(run)].filter(Boolean).join(": "))));
}

function zoomByKey(event) {
  const moves = { "+": [0.15, -0.15], "=": [0.15, -0.15], "-": [-0.2, 0.2], ArrowLeft: [-0.1, -0.1], ArrowRight: [0.1, 0.1] };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "0") Plotly.relayout(byId("curves"), { "xaxis.autorange": true, "yaxis.autorange": true });
  else if (event.key in moves) {
    const [low, high] = byId("curves").layout.xaxis.range;
    const [left, right] = moves[event.key];
    Plotly.relayout(byId("curves"), { "xaxis.range": [low + left * (high - low), high + right * (high - low)] });
  } else return;
  event.preventDefault();
}

const heatMetrics = [
  ...data.metrics.map(({ name }) => ({ title: name, value: (run) => run.scores[name]?.value ?? null })),
  { title: "final loss", value: (run) => run.loss },
  { title: "images/s", value: (run) => run.speed },
  { title: "seconds", value: (run) => run.seconds },
].filter(({ value }) => runs.some((run) => value(run) !== null));

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

function showHeat() {
  if (byId("heat").hidden) return;
  const [down, across] = data.heat;
  const { colour, axis, layout } = theme();
  const { title, value } = heatMetrics[byId("heat-metric").selectedIndex];
  const name = (text) => plain(text === "" ? "(default)" : text);
  const cells = down.values.map((y) => across.values.map((x) => {
    const inside = shown.filter((run) => run.swept[down.key] === y && run.swept[across.key] === x);
    return mean(inside.map(value).filter((found) => found !== null));
  }));
  byId("map").style.height = `${Math.min(12 + 3 * down.values.length, 40)}rem`;
  Plotly.react(byId("map"), [{
    type: "heatmap",
    x: across.values.map(name),
    y: down.values.map(name),
    z: cells,
    text: cells.map((row) => row.map((cell) => (cell === null ? "" : figure(cell)))),
    texttemplate: "%{text}",
    textfont: { size: 14, color: colour("ink") },
    colorscale: [[0, colour("heat-low")], [1, colour("heat-high")]],
    colorbar: { title: { text: plain(title), side: "right" }, thickness: 14, outlinewidth: 0 },
    xgap: 2,
    ygap: 2,
    hoverongaps: false,
    hovertemplate: "%{y}, %{x}: %{z:.5g}<extra></extra>",
  }], {
    ...layout,
    margin: { ...layout.margin, t: 16 },
    dragmode: false,
    xaxis: { ...axis, type: "category", title: { text: plain(across.key), standoff: 8 }, showgrid: false, fixedrange: true },
    yaxis: { ...axis, type: "category", title: { text: plain(down.key), standoff: 8 }, showgrid: false, fixedrange: true, autorange: "reversed" },
  }, { ...CONFIG, displayModeBar: false });
}

/* --- pictures -------------------------------------------------------------------------------------------------- */

const milestones = [...new Set(runs.flatMap((run) => Object.keys(run.grids).map(Number)))].sort((a, b) => a - b);
const hasFilms = runs.some((run) => run.film);
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;

function card(run, picture, note) {
  const name = [swatch(run), element("b", {}, run.name), note && element("span", { class: "none" }, ` ${note}`)];
  const caption = element("figcaption", {}, ...name, element("span", { class: "note" }, difference(run)));
  return element("figure", { "data-run": run.index }, caption, picture);
}

/* The step of the newest grid of a run up to a step. */
function gridAt(run, step) {
  const past = Object.keys(run.grids).map(Number).filter((own) => own <= step);
  return past.length ? Math.max(...past) : null;
}

function showGrids() {
  if (!milestones.length) return;
  const slider = byId("milestone");
  const step = milestones[Number(slider.value)];
  slider.setAttribute("aria-valuetext", `step ${step}`);
  byId("milestone-step").value = `step ${step}`;
  byId("grids").replaceChildren(...shown.map((run) => {
    const own = gridAt(run, step);
    if (own === null) return card(run, element("p", { class: "empty" }, Object.keys(run.grids).length ? "none yet" : "no samples"), null);
    const picture = element("img", { src: run.grids[own], alt: `samples of run ${run.name} at step ${own}`, "data-step": own });
    return card(run, picture, own === step ? null : `from step ${own}`);
  }));
}

function showFilms() {
  if (!hasFilms) return;
  byId("play").textContent = playing ? "Stop" : "Play";
  byId("films-cards").replaceChildren(...shown.filter((run) => run.film).map((run) => {
    const alt = `${playing ? "denoising film" : "last frame of the denoising film"} of run ${run.name}`;
    return card(run, element("img", { src: playing ? run.film.moving : run.film.still, alt }), null);
  }));
}

/* --- commands -------------------------------------------------------------------------------------------------- */

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // some browsers forbid it for pages opened from disk
    const area = element("textarea", { class: "announce" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function showCommands() {
  byId("commands").replaceChildren(...shown.map((run) => {
    const button = element("button", { type: "button", "aria-label": `copy the command of run ${run.name}` }, "Copy");
    button.addEventListener("click", async () => {
      await copy(run.command);
      button.focus();
      button.textContent = "Copied";
      byId("announce").textContent = `copied the command of run ${run.name}`;
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    const who = element("span", { class: "who" }, swatch(run), element("b", {}, run.name), ` `, element("span", { class: "none" }, run.path));
    return element("li", {}, who, element("code", {}, run.command), button);
  }));
}

/* --- page ------------------------------------------------------------------------------------------------------ */

function update() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = runs.filter((run) => words.every((word) => run.searchText.includes(word)));
  if (sorting.column) {
    shown.sort((a, b) => compare(sorting.column.value(a), sorting.column.value(b), sorting.descending) || a.index - b.index);
  }
  byId("count").value = shown.length === runs.length ? `${runs.length} ${runs.length === 1 ? "run" : "runs"}` : `${shown.length} of ${runs.length} runs`;
  for (const show of [showTable, showCurves, showHeat, showGrids, showFilms, showCommands]) show();
}

function hideEmpty() {
  byId("filter-bar").hidden = runs.length < 2;
  byId("loss").hidden = !runs.some((run) => run.curve.losses.some((loss) => loss !== null));
  byId("heat").hidden = !data.heat || !heatMetrics.length;
  byId("samples").hidden = !milestones.length;
  byId("films").hidden = !hasFilms;
  for (const section of document.querySelectorAll("main > section:not([hidden])")) {
    document.querySelector("nav").append(element("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
  }
}

function describe() {
  document.querySelector("h1").textContent = data.title;
  byId("made").textContent = `created by ddpm-report, ${data.made}`;
  const notes = Object.entries(data.unlike).map(([names, ways]) => element("li", {}, `${names}: not measured with the same settings in all runs: ${ways.join(" or ")}`));
  byId("unlike").replaceChildren(...notes);
  byId("unlike").hidden = !notes.length;
  if (coarse) byId("curves-keys").textContent = "Buttons: + and − zoom, the arrows let you pan by touch, the house resets.";
  const better = (higher) => data.metrics.filter((metric) => metric.higher === higher).map((metric) => metric.name).join(", ");
  const legend = [better(false) && `lower is better: ${better(false)}`, better(true) && `higher is better: ${better(true)}`].filter(Boolean);
  byId("legend-metrics").textContent = legend.join("; ");
  byId("legend-metrics").hidden = !legend.length;
}

describe();
hideEmpty();
buildHead();
byId("heat-metric").append(...heatMetrics.map(({ title }) => element("option", {}, title)));
byId("milestone").max = Math.max(0, milestones.length - 1);
byId("milestone").value = byId("milestone").max;
update();

byId("filter").addEventListener("input", update);
byId("log").addEventListener("change", showCurves);
byId("smooth").addEventListener("input", showCurves);
byId("curves").addEventListener("keydown", zoomByKey);
byId("heat-metric").addEventListener("change", showHeat);
byId("milestone").addEventListener("input", showGrids);
byId("play").addEventListener("click", () => { playing = !playing; showFilms(); });
dark.addEventListener("change", () => { showCurves(); showHeat(); });
