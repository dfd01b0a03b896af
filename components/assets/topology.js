"use strict";
// Topologies side by side: of one block and action, every kind that a member has; point at a cell to read it.
// Matrices are int16 [action][block][sender][receiver], see components/explain_page.py.

function makeTopologies(data) {
  const byId = (id) => document.getElementById(id), count = data.joints.length;
  const action = byId("topology-class"), block = byId("topology-block"), text = byId("topology-text");
  const panels = [];
  let cursor = null;

  function matrixOf(bytes) {
    const raw = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0)), view = new DataView(raw.buffer);
    return Float32Array.from({ length: raw.length / 2 }, (_, i) => view.getInt16(2 * i, true) / 32767);
  }

  for (const member of data.members) for (const [kind, said] of data.kinds) {
    const found = member.kinds[kind];
    if (!found) continue;
    const figure = document.createElement("figure"), canvas = document.createElement("canvas"), note = document.createElement("figcaption");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${member.name}: ${said}`);
    figure.append(canvas, note);
    byId("topology-panels").append(figure);
    const panel = { canvas, note, member, kind, said, shape: found.shape, scale: found.scale, limits: found.limits, values: matrixOf(found.data) };
    panels.push(panel);
    canvas.addEventListener("pointermove", (event) => point(panel, event));
    canvas.addEventListener("pointerdown", (event) => point(panel, event));
    new ResizeObserver(() => draw(panel)).observe(canvas);
  }

  // The last block alone has a rebuilt topology.
  const blockOf = (panel) => (panel.shape[1] === 1 && panel.member.blocks > 1 ? panel.member.blocks : Math.min(Number(block.value), panel.member.blocks));
  const layerOf = (panel) => (panel.shape[1] === 1 ? 0 : blockOf(panel) - 1);
  function value(panel, from, to) {
    const which = panel.shape[0] === 1 ? 0 : Number(action.value);
    return panel.values[((which * panel.shape[1] + layerOf(panel)) * count + from) * count + to] * panel.scale;
  }

  // -1 to 1; values of one sign take all shades of its half, as in the figures.
  function shade(now, [low, high]) {
    if (low >= 0) return Math.max(0, now - low) / (high - low);
    if (high <= 0) return -Math.max(0, high - now) / (high - low);
    return now / high;
  }

  function draw(panel) {
    const { canvas } = panel, ratio = window.devicePixelRatio || 1, side = canvas.clientWidth;
    if (!side) return;
    canvas.width = canvas.height = Math.round(side * ratio);
    const pen = canvas.getContext("2d"), theme = getComputedStyle(document.documentElement);
    const blue = theme.getPropertyValue("--accent"), orange = theme.getPropertyValue("--warn"), cell = side / count;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, side, side);
    const limits = panel.limits[layerOf(panel)], edge = (at) => Math.round(at * cell * ratio) / ratio;  // whole pixels leave no seams
    for (let from = 0; from < count; from++) for (let to = 0; to < count; to++) {
      const now = shade(value(panel, from, to), limits);
      pen.globalAlpha = Math.min(1, Math.abs(now)) ** 0.8;
      pen.fillStyle = now < 0 ? orange : blue;
      pen.fillRect(edge(to), edge(from), edge(to + 1) - edge(to), edge(from + 1) - edge(from));
    }
    pen.globalAlpha = 1;
    if (cursor) {
      pen.strokeStyle = theme.getPropertyValue("--ink");
      pen.lineWidth = 1.5;
      pen.strokeRect(cursor[1] * cell, cursor[0] * cell, cell, cell);
    }
    const at = panel.shape[1] === 1 && panel.member.blocks > 1 ? "last block" : `block ${blockOf(panel)}`;
    const own = panel.shape[0] === 1 ? "" : `, ${data.classes[Number(action.value)]}`;
    panel.note.textContent = `${panel.member.name}: ${panel.said} (${at}${own})`;
  }

  function point(panel, event) {
    const box = panel.canvas.getBoundingClientRect();
    const at = (pixel, whole) => Math.min(Math.max(Math.floor((pixel / whole) * count), 0), count - 1);
    cursor = [at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width)];
    say();
    redraw();
  }

  function say() {
    const [from, to] = cursor, digits = (number) => `${number > 0 ? "+" : ""}${number.toPrecision(3)}`;
    const parts = panels.map((panel) => `${data.members.length > 1 ? panel.member.name + " " : ""}${panel.kind === "A0" ? "A₀" : panel.kind} ${digits(value(panel, from, to))}`);
    text.textContent = `${data.joints[from]} → ${data.joints[to]}: ${parts.join(", ")}`;
  }

  function redraw() { panels.forEach(draw); }
  action.replaceChildren(...data.classes.map((name, index) => new Option(name, index)));
  const most = Math.max(...data.members.map((member) => member.blocks));
  block.replaceChildren(...Array.from({ length: most }, (_, i) => new Option(`${i + 1}`, i + 1, false, i + 1 === most)));
  block.value = most;
  for (const chooser of [action, block]) chooser.addEventListener("change", () => { if (cursor) say(); redraw(); });
  redraw();
  return { redraw, state: () => ({ cursor, panels: panels.length }) };
}
