/* The command of each run and the buttons that copy it. */

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // some browsers do not allow it on pages opened from disk
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
      await copyText(run.command);
      button.focus();
      button.textContent = "Copied";
      byId("announce").textContent = `copied the command of run ${run.name}`;
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    const label = element("span", { class: "who" }, swatch(run), element("b", {}, run.name), ` `, element("span", { class: "none" }, run.path));
    const changes = run.changes ? element("small", { class: "who none" }, `changed on resume ${run.changes}`) : null;
    return element("li", {}, label, element("code", {}, run.command), button, changes);
  }));
}
