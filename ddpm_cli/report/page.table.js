/* The table of runs and its sorting. */

const columns = [
  { key: "run", title: "run", value: (run) => run.name },
  ...data.settings.map((key) => ({ key, title: key, value: (run) => asNumber(run.settings[key]) })),
  ...data.metrics.map(({ name, higher }) => ({
    key: name,
    title: name,
    number: true,
    better: higher ? "higher" : "lower",
    value: (run) => run.scores[name]?.value ?? null,
    cell: (run) => scoreCell(run.scores[name]),
  })),
  { key: "final_loss", title: "final loss", number: true, value: (run) => run.loss, text: formatNumber },
  {
    key: "steps",
    title: "steps",
    number: true,
    value: (run) => run.steps,
    text: (steps, run) => (unfinished(run) ? `${steps} of ${run.planned}` : String(steps)),
  },
  { key: "seconds", title: "time", number: true, value: (run) => run.seconds, text: formatDuration },
  { key: "images_per_second", title: "images/s", number: true, value: (run) => run.speed, text: (x) => String(Number(x.toPrecision(3))) },
];
const sorting = { column: null, descending: false };

function asNumber(text) {
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function unfinished(run) {
  return run.planned !== null && run.steps < run.planned;
}

function scoreCell(found) {
  if (!found) return null;
  const interval = found.interval ? `${formatNumber(found.interval[0])} to ${formatNumber(found.interval[1])}` : null;
  const at = found.step === null ? found.settings : `step ${found.step}, ${found.settings}`;
  const cell = element("td", { class: "number", title: at }, formatNumber(found.value));
  if (interval) cell.append(element("small", { title: "95% interval of the mean at this n" }, interval));
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
  const state = run.diverged ? "diverged" : run.pruned ? "pruned" : unfinished(run) ? "unfinished" : null;
  const badge = state && element("span", { class: `state ${state}` }, state);
  const head = element("th", { scope: "row", title: run.path }, swatch(run), run.name, badge);
  const row = element("tr", {}, head, ...columns.slice(1).map((column) => cellOf(column, run)));
  columns.forEach((column, i) => {
    if (column.better && column.value(run) !== null && column.value(run) === best.get(column)) row.children[i].classList.add("best");
  });
  return row;
}

/* Return the best value of a column, or null if fewer than two runs have one. */
function bestValue(column) {
  const values = runs.map(column.value).filter((value) => value !== null);
  if (values.length < 2) return null;
  return column.better === "higher" ? Math.max(...values) : Math.min(...values);
}

const best = new Map(columns.map((column) => [column, column.better ? bestValue(column) : null]));

function compareValues(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null); // missing values are last in both directions
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
