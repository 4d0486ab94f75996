/* The sample grids and the denoising films. */

const milestones = [...new Set(runs.flatMap((run) => Object.keys(run.grids).map(Number)))].sort((a, b) => a - b);
const hasFilms = runs.some((run) => run.film);
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;

function pictureCard(run, picture, note) {
  const name = [swatch(run), element("b", {}, run.name), note && element("span", { class: "none" }, ` ${note}`)];
  const caption = element("figcaption", {}, ...name, element("span", { class: "note" }, settingsText(run)));
  return element("figure", { "data-run": run.index }, caption, picture);
}

/* Return the step of the latest grid of a run at or before a step, or null if there is none. */
function gridAt(run, step) {
  const past = Object.keys(run.grids).map(Number).filter((milestone) => milestone <= step);
  return past.length ? Math.max(...past) : null;
}

function showGrids() {
  if (!milestones.length) return;
  const slider = byId("milestone");
  const step = milestones[Number(slider.value)];
  slider.setAttribute("aria-valuetext", `step ${step}`);
  byId("milestone-step").value = `step ${step}`;
  byId("grids").replaceChildren(...shown.filter((run) => run.pictured).map((run) => {
    const latest = gridAt(run, step);
    if (latest === null) return pictureCard(run, element("p", { class: "empty" }, Object.keys(run.grids).length ? "none yet" : "no samples"), null);
    const picture = element("img", { src: run.grids[latest], alt: `samples of run ${run.name} at step ${latest}`, "data-step": latest });
    return pictureCard(run, picture, latest === step ? null : `from step ${latest}`);
  }));
}

function showFilms() {
  if (!hasFilms) return;
  byId("play").textContent = playing ? "Stop" : "Play";
  byId("films-cards").replaceChildren(...shown.filter((run) => run.film).map((run) => {
    const alt = `${playing ? "denoising film" : "last frame of the denoising film"} of run ${run.name}`;
    return pictureCard(run, element("img", { src: playing ? run.film.moving : run.film.still, alt }), null);
  }));
}
