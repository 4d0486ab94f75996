/* Filtering, page texts and event listeners. This file must be the last one, because it calls all others. */

let waiting = null;

function update() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = runs.filter((run) => words.every((word) => run.searchText.includes(word)));
  if (sorting.column) {
    shown.sort((a, b) => compareValues(sorting.column.value(a), sorting.column.value(b), sorting.descending) || a.index - b.index);
  }
  byId("count").value = shown.length === runs.length ? `${runs.length} ${runs.length === 1 ? "run" : "runs"}` : `${shown.length} of ${runs.length} runs`;
  showTable();
  clearTimeout(waiting);
  if (runs.length > MOST_CURVES) waiting = setTimeout(showOthers); // so that the browser draws the table first
  else showOthers();
}

function showOthers() {
  for (const show of [showCurves, showHeat, showGrids, showFilms, showCommands]) show();
}

function hideEmptySections() {
  byId("filter-bar").hidden = runs.length < 2;
  byId("loss").hidden = !runs.some((run) => run.curve.losses.some((loss) => loss !== null));
  byId("heat").hidden = !data.heat || !heatMetrics.length;
  byId("samples").hidden = !milestones.length;
  byId("films").hidden = !hasFilms;
  for (const section of document.querySelectorAll("main > section:not([hidden])")) {
    document.querySelector("nav").append(element("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
  }
}

function showTexts() {
  document.querySelector("h1").textContent = data.title;
  byId("created").textContent = `created by ddpm-report, ${data.created}`;
  const items = Object.entries(data.incomparable).map(([names, variants]) => element("li", {}, `${names}: not measured with the same settings in all runs: ${variants.join(" or ")}`));
  byId("incomparable").replaceChildren(...items);
  byId("incomparable").hidden = !items.length;
  if (coarse) byId("curves-keys").textContent = "Buttons: + and − zoom, the arrows enable panning, the house icon resets.";
  for (const note of document.querySelectorAll(".pictured")) {
    note.textContent = `Pictures ${data.pictured}.`;
    note.hidden = !data.pictured;
  }
  const better = (higher) => data.metrics.filter((metric) => metric.higher === higher).map((metric) => metric.name).join(", ");
  const legend = [better(false) && `lower is better: ${better(false)}`, better(true) && `higher is better: ${better(true)}`].filter(Boolean);
  byId("legend-metrics").textContent = legend.join("; ");
  byId("legend-metrics").hidden = !legend.length;
}

showTexts();
hideEmptySections();
buildHead();
byId("heat-metric").append(...heatMetrics.map(({ title }) => element("option", {}, title)));
byId("milestone").max = Math.max(0, milestones.length - 1);
byId("milestone").value = byId("milestone").max;
update();

byId("filter").addEventListener("input", update);
byId("log").addEventListener("change", showCurves);
byId("smooth").addEventListener("input", showCurves);
byId("curves").addEventListener("keydown", zoomWithKeys);
byId("heat-metric").addEventListener("change", showHeat);
byId("milestone").addEventListener("input", showGrids);
byId("play").addEventListener("click", () => { playing = !playing; showFilms(); });
dark.addEventListener("change", () => { showCurves(); showHeat(); });
