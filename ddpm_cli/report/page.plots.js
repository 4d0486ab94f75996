/* The loss curves and the heat map, drawn with plotly.js. */

const PLOT_CONFIG = {
  displaylogo: false,
  responsive: true,
  displayModeBar: coarse ? true : "hover",
  modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]], // without the button that uploads the data
};

const MOST_CURVES = 100;

function plotTheme() {
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
    dragmode: coarse ? false : "zoom", // on touch screens, dragging must scroll the page
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
  const { colour, axis, layout } = plotTheme();
  const weight = Number(byId("smooth").value);
  const logarithmic = byId("log").checked;
  const drawn = shown.slice(0, MOST_CURVES);
  const traces = drawn.map((run) => ({
    type: "scatter",
    mode: run.curve.steps.length === 1 ? "markers" : "lines",
    name: escapeHtml([run.name, settingsText(run)].filter(Boolean).join(": ")),
    x: run.curve.steps,
    y: smoothed(run.curve.losses, weight),
    line: { color: colour(`c${run.index % COLOURS}`), width: 1.6, dash: strokeOf(run)[0] },
    hovertemplate: "step %{x}, loss %{y:.4g}<extra>%{fullData.name}</extra>",
  }));
  Plotly.react(byId("curves"), traces, {
    ...layout,
    uirevision: `${logarithmic}`, // keeps the zoom unless the scale changes
    xaxis: { ...axis, title: { text: "step", standoff: 8 } },
    yaxis: { ...axis, title: { text: "loss", standoff: 8 }, type: logarithmic ? "log" : "linear", nticks: 7 },
  }, PLOT_CONFIG);
  byId("curves-count").textContent = `The first ${drawn.length} of ${shown.length} runs in the order of the table. Sort or filter it to see others.`;
  byId("curves-count").hidden = drawn.length === shown.length;
  byId("legend").replaceChildren(...drawn.map((run) => element("li", {}, swatch(run), [run.name, settingsText(run)].filter(Boolean).join(": "))));
}

function zoomWithKeys(event) {
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

function meanOf(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

function showHeat() {
  if (byId("heat").hidden) return;
  const [down, across] = data.heat;
  const { colour, axis, layout } = plotTheme();
  const { title, value } = heatMetrics[byId("heat-metric").selectedIndex];
  const name = (text) => escapeHtml(text === "" ? "(default)" : text);
  const cells = down.values.map((y) => across.values.map((x) => {
    const cellRuns = shown.filter((run) => run.swept[down.key] === y && run.swept[across.key] === x);
    return meanOf(cellRuns.map(value).filter((found) => found !== null));
  }));
  byId("map").style.height = `${Math.min(12 + 3 * down.values.length, 40)}rem`;
  Plotly.react(byId("map"), [{
    type: "heatmap",
    x: across.values.map(name),
    y: down.values.map(name),
    z: cells,
    text: cells.map((row) => row.map((cell) => (cell === null ? "" : formatNumber(cell)))),
    texttemplate: "%{text}",
    textfont: { size: 14, color: colour("ink") },
    colorscale: [[0, colour("heat-low")], [1, colour("heat-high")]],
    colorbar: { title: { text: escapeHtml(title), side: "right" }, thickness: 14, outlinewidth: 0 },
    xgap: 2,
    ygap: 2,
    hoverongaps: false,
    hovertemplate: "%{y}, %{x}: %{z:.5g}<extra></extra>",
  }], {
    ...layout,
    margin: { ...layout.margin, t: 16 },
    dragmode: false,
    xaxis: { ...axis, type: "category", title: { text: escapeHtml(across.key), standoff: 8 }, showgrid: false, fixedrange: true },
    yaxis: { ...axis, type: "category", title: { text: escapeHtml(down.key), standoff: 8 }, showgrid: false, fixedrange: true, autorange: "reversed" },
  }, { ...PLOT_CONFIG, displayModeBar: false });
}
