"use strict";
// The confusion matrix on a canvas: sort, zoom, drag, point and choose. Rows are true classes.

function makeMatrix(rows, classes, onChoose) {
  const byId = (id) => document.getElementById(id);
  const canvas = byId("matrix"), pen = canvas.getContext("2d"), text = byId("matrix-text");
  const count = classes.length, pick = byId("matrix-row"), sort = byId("matrix-sort"), mode = byId("matrix-show");
  const view = { zoom: 1, x: 0, y: 0 };  // x, y: first class shown, as a fraction of all
  const pointers = new Map();
  let counts, totals, order, cursor = null, side = 0, gutter = 0, moved = 0;

  function load() {
    const row = rows[pick.value];
    counts = Array.from({ length: count }, () => new Map());
    totals = new Array(count).fill(0);
    for (const [i, j, n] of row.cells) { counts[i].set(j, n); totals[i] += n; }
    order = [...classes.keys()];
    if (sort.value === "similar") order = row.order;
    if (sort.value === "accuracy") order.sort((a, b) => share(a, a) - share(b, b) || a - b);
    draw();
    list();
  }

  // The errors that the matrix shows, most frequent first; also the way to them without a mouse.
  function list() {
    const errors = rows[pick.value].cells.filter(([i, j]) => i !== j).sort((a, b) => b[2] - a[2] || share(b[0], b[1]) - share(a[0], a[1]));
    byId("matrix-errors").replaceChildren(...errors.slice(0, 10).map(([i, j, n]) => {
      const item = document.createElement("li"), open = document.createElement("button");
      open.type = "button";
      open.className = "link";
      open.textContent = `${classes[i]} as ${classes[j]}`;
      open.addEventListener("click", () => { cursor = [order.indexOf(i), order.indexOf(j)]; choose(); });
      item.append(open, ` ${n} of ${totals[i]}`);
      return item;
    }));
  }

  const share = (i, j) => (counts[i].get(j) || 0) / Math.max(totals[i], 1);
  const channel = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const mix = (a, b, part) => `rgb(${a.map((value, k) => Math.round(value + (b[k] - value) * part)).join(",")})`;

  function draw() {
    const width = canvas.clientWidth, ratio = window.devicePixelRatio || 1;
    const longest = Math.max(...classes.map((name) => name.length));
    gutter = Math.round(Math.min(longest * 6.3 + 12, 170, width * 0.3));
    side = Math.max(60, Math.min(width - gutter, 640));
    canvas.style.height = `${side + gutter}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round((side + gutter) * ratio);
    canvas.style.touchAction = view.zoom > 1 ? "none" : "pan-y";
    const theme = getComputedStyle(document.documentElement), read = (name) => theme.getPropertyValue(name).trim();
    const paper = channel(read("--page")), right = channel(read("--accent")), wrong = channel(read("--warn"));
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, side + gutter);
    const cell = (side / count) * view.zoom, gap = cell > 8 ? 1 : 0;
    const left = gutter - view.x * side * view.zoom, top = gutter - view.y * side * view.zoom;
    const seen = [...order.keys()];
    const visible = (origin) => seen.filter((k) => origin + (k + 1) * cell > gutter && origin + k * cell < gutter + side);
    const columns = visible(left), lines = visible(top);
    pen.save();
    pen.beginPath(); pen.rect(gutter, gutter, side, side); pen.clip();
    pen.fillStyle = mix(paper, paper, 0);
    pen.fillRect(gutter, gutter, side, side);
    pen.textAlign = "center"; pen.textBaseline = "middle"; pen.font = `${Math.min(12, cell * 0.4)}px system-ui, sans-serif`;
    for (const row of lines) for (const column of columns) {
      const i = order[row], j = order[column], n = counts[i].get(j);
      const hide = mode.value === "errors" && i === j;
      if (!n || hide) continue;
      const strength = Math.sqrt(share(i, j));  // the root keeps rare errors visible
      pen.fillStyle = mix(paper, i === j ? right : wrong, 0.12 + 0.88 * strength);
      pen.fillRect(left + column * cell, top + row * cell, cell - gap, cell - gap);
      if (cell >= 22) {
        pen.fillStyle = strength > 0.6 ? read("--surface") : read("--ink");
        pen.fillText(cell >= 34 ? Math.round(100 * share(i, j)) : n, left + (column + 0.5) * cell, top + (row + 0.5) * cell);
      }
    }
    if (cursor) {
      pen.strokeStyle = read("--ink"); pen.lineWidth = 2;
      pen.strokeRect(left + cursor[1] * cell, top + cursor[0] * cell, cell - gap, cell - gap);
    }
    pen.restore();
    names(lines, columns, left, top, cell, read, width);
  }

  // Class names, thinned out where they would overlap.
  function names(lines, columns, left, top, cell, read, width) {
    const every = Math.max(1, Math.ceil(11 / cell)), size = Math.min(12, Math.max(9, cell * 0.8));
    pen.font = `${size}px system-ui, sans-serif`;
    const cut = (name) => {
      let kept = name;
      while (kept.length > 1 && pen.measureText(kept === name ? name : kept + "…").width > gutter - 8) kept = kept.slice(0, -1);
      return kept === name ? name : kept + "…";
    };
    pen.textBaseline = "middle";
    const write = (position, axis) => {
      const own = cursor && cursor[axis] === position;
      if (position % every && !own) return;
      pen.fillStyle = own ? read("--accent") : read("--muted");
      const name = cut(classes[order[position]]);
      if (axis === 0) {
        pen.textAlign = "right";
        pen.fillText(name, gutter - 6, top + (position + 0.5) * cell);
      } else {
        pen.save();
        pen.translate(left + (position + 0.5) * cell, gutter - 6);
        pen.rotate(-Math.PI / 2);
        pen.textAlign = "left";
        pen.fillText(name, 0, 0);
        pen.restore();
      }
    };
    const middle = (origin, position) => origin + (position + 0.5) * cell;
    const inside = (origin, position) => middle(origin, position) > gutter && middle(origin, position) < gutter + side;
    lines.filter((p) => inside(top, p)).forEach((p) => write(p, 0));
    columns.filter((p) => inside(left, p)).forEach((p) => write(p, 1));
  }

  function say() {
    const [i, j] = cursor.map((position) => order[position]), n = counts[i].get(j) || 0;
    const percent = (100 * share(i, j)).toFixed(1);
    text.textContent = i === j
      ? `${classes[i]}: ${n} of ${totals[i]} clips right (${percent} %).`
      : `${classes[i]} taken for ${classes[j]}: ${n} of ${totals[i]} clips (${percent} %).`;
  }

  function cellAt(event) {
    const box = canvas.getBoundingClientRect();
    const at = (pixel, offset) => Math.floor(((pixel - gutter) / (side * view.zoom) + offset) * count);
    const px = event.clientX - box.left, py = event.clientY - box.top;
    if (px < gutter || py < gutter || px >= gutter + side || py >= gutter + side) return null;
    return [Math.min(at(py, view.y), count - 1), Math.min(at(px, view.x), count - 1)];
  }

  function clamp() {
    const most = 1 - 1 / view.zoom;
    view.x = Math.min(Math.max(view.x, 0), most);
    view.y = Math.min(Math.max(view.y, 0), most);
  }

  // Zoom about a point given as fractions of the square.
  function zoom(factor, fx = 0.5, fy = 0.5) {
    const next = Math.min(Math.max(view.zoom * factor, 1), Math.max(1, count / 4));
    view.x += fx / view.zoom - fx / next;
    view.y += fy / view.zoom - fy / next;
    view.zoom = next;
    clamp();
    draw();
  }

  function choose() {
    say();
    draw();
    onChoose(order[cursor[0]], order[cursor[1]]);
  }

  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, (event.clientX - box.left - gutter) / side, (event.clientY - box.top - gutter) / side);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { pointers.set(event.pointerId, event); moved = 0; });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) {
      const cell = cellAt(event);
      if (cell && String(cell) !== String(cursor)) { cursor = cell; say(); draw(); }
      return;
    }
    const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
    moved += Math.abs(dx) + Math.abs(dy);
    const others = [...pointers.values()].filter((p) => p.pointerId !== event.pointerId);
    pointers.set(event.pointerId, event);
    if (others.length) {
      const reach = (p) => Math.hypot(p.clientX - others[0].clientX, p.clientY - others[0].clientY);
      const box = canvas.getBoundingClientRect();
      zoom(reach(event) / Math.max(reach(before), 1), (event.clientX - box.left - gutter) / side, (event.clientY - box.top - gutter) / side);
    } else if (moved > 4) {
      if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
      view.x -= dx / (side * view.zoom);
      view.y -= dy / (side * view.zoom);
      clamp();
      draw();
    }
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(kind, (event) => {
      const tapped = pointers.delete(event.pointerId) && kind === "pointerup" && moved <= 4;
      const cell = tapped && cellAt(event);
      if (cell) { cursor = cell; choose(); }
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (way) {
      cursor = cursor ? cursor.map((p, axis) => Math.min(Math.max(p + way[axis], 0), count - 1)) : [0, 0];
      say(); draw();
    } else if (event.key === "Enter" && cursor) choose();
    else if (event.key === "+") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else return;
    event.preventDefault();
  });
  byId("matrix-in").addEventListener("click", () => zoom(1.5));
  byId("matrix-out").addEventListener("click", () => zoom(1 / 1.5));
  byId("matrix-fit").addEventListener("click", () => zoom(0));
  [pick, sort].forEach((element) => element.addEventListener("change", () => { cursor = null; load(); }));
  mode.addEventListener("change", draw);
  new ResizeObserver(draw).observe(canvas.parentElement);
  load();
  return { redraw: draw, reload: load, state: () => ({ ...view, order, cursor }) };
}
