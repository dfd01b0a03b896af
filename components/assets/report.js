"use strict";
// Ties the parts of the page together: theme, sortable tables, choosers, and what a choice in one part shows in another.

(function () {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const byId = (id) => document.getElementById(id);
  const headline = data.rows.findIndex((row) => row.name === data.headline);

  function choices(id, selected, none) {
    const options = data.rows.map((row, index) => new Option(row.label, index, false, index === selected));
    if (none !== undefined) options.unshift(new Option(none, "", false, selected === ""));
    byId(id).replaceChildren(...options);
  }

  choices("matrix-row", headline);
  choices("class-row", headline);
  const baseline = data.rows.findIndex((row) => row.name === data.baseline);
  choices("class-base", baseline !== headline ? baseline : data.rows.length > 1 ? (headline === 0 ? 1 : 0) : "", "nothing");

  const stage = makeStage(data.layout, data.clips, data.classes);

  function compare(a, b, go) {
    stage.compare(a, b);
    for (const button of byId("pairs").querySelectorAll("button")) {
      const pair = [button.dataset.a, button.dataset.b].map(Number);
      button.setAttribute("aria-pressed", String(pair.includes(a) && pair.includes(b) && a !== b));
    }
    if (go) {
      byId("skeletons").scrollIntoView();
      if (!matchMedia("(prefers-reduced-motion: reduce)").matches) stage.setPlaying(true);
    }
  }

  for (const pair of data.pairs) {
    const button = document.createElement("button"), small = document.createElement("small");
    // The direction that goes wrong more often is shown first.
    const [a, b] = pair.a_as_b >= pair.b_as_a ? [pair.a, pair.b] : [pair.b, pair.a];
    button.type = "button";
    button.dataset.a = a;
    button.dataset.b = b;
    button.textContent = `${data.classes[a]} / ${data.classes[b]}`;
    small.textContent = `${pair.a_as_b + pair.b_as_a} of ${pair.clips} clips mistaken for the other`;
    button.append(small);
    button.addEventListener("click", () => {
      compare(a, b, false);
      stage.setPlaying(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    });
    byId("pairs").append(button);
  }
  if (!data.pairs.length) byId("pairs").textContent = "No two classes are confused.";

  const matrix = makeMatrix(data.rows, data.classes, (a, b) => compare(a, b, true));
  makeClasses(data.rows, data.classes, (a, b) => compare(a, b, true)).fill();
  const first = byId("pairs").querySelector("button");
  if (first) compare(Number(first.dataset.a), Number(first.dataset.b), false);
  else compare(0, Math.min(1, data.classes.length - 1), false);

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const number = (text) => parseFloat(String(text).replace(/[\u202f,]/g, ""));
    heads.forEach((head, column) => {
      head.tabIndex = 0;
      const sort = () => {
        const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : head.classList.contains("number");
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const lines = [...body.rows].sort((a, b) => {
          const [x, y] = [value(a, column), value(b, column)], order = number(x) - number(y);
          return (Number.isNaN(order) ? x.localeCompare(y) : order) * (down ? -1 : 1);
        });
        body.append(...lines);
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
    });
  }

  const volumes = data.volumes.length ? makeVolumes(data.volumes, data.classes) : null;
  makeTheme(() => { stage.redraw(); matrix.redraw(); if (volumes) volumes.redraw(); });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, button, canvas, summary, th");
    if (event.key === " " && !typing) { event.preventDefault(); byId("play").click(); }
  });
  window.sixstream = { data, stage, matrix, volumes };  // for tests and the curious
})();
