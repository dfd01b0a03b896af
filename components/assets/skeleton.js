"use strict";
// Two clips side by side on one clock: play, scrub, speed, both persons, trails, turning by drag.
// Coordinates are int16 [frame, person, joint, dimension], see components/skeletons.py.

function makeStage(layout, clips, classes) {
  const MISSING = -32768, FRAMES_PER_SECOND = 30, TRAIL = 14;
  const byId = (id) => document.getElementById(id);
  const play = byId("play"), scrub = byId("scrub"), speed = byId("speed"), trails = byId("trails");
  const decoded = new Map();
  const actors = ["left", "right"].map((side) => ({
    canvas: byId("actor-" + side), caption: byId("caption-" + side), select: byId("clip-" + side), clip: null, points: null,
  }));
  let clock = 0, yaw = 0, playing = false, last = 0;

  function points(index) {
    if (!decoded.has(index)) {
      const bytes = Uint8Array.from(atob(clips[index].data), (c) => c.charCodeAt(0));
      const view = new DataView(bytes.buffer), out = new Int16Array(bytes.length / 2);
      for (let i = 0; i < out.length; i++) out[i] = view.getInt16(2 * i, true);
      decoded.set(index, out);
    }
    return decoded.get(index);
  }

  // Seconds that the longer of the two clips lasts.
  function length() {
    return Math.max(...actors.map((a) => (a.clip ? (a.clip.frames * a.clip.step) / FRAMES_PER_SECOND : 0)), 0.1);
  }

  function project(actor, frame, person, joint, size) {
    const { clip } = actor, at = ((frame * clip.persons + person) * layout.joints.length + joint) * clip.dims;
    const x = actor.points[at], y = actor.points[at + 1], z = clip.dims > 2 ? actor.points[at + 2] : 0;
    if (x === MISSING) return null;
    const turned = x * Math.cos(yaw) + z * Math.sin(yaw);
    const [across, up, deep = 0] = clip.box;
    const scale = 0.44 * Math.min(size.width / Math.max(across, deep, 1), (size.height - 26) / Math.max(up, 1));
    return [size.width / 2 + turned * scale, size.height / 2 - 8 - y * scale];
  }

  function draw(actor) {
    const { canvas, clip } = actor, size = { width: canvas.clientWidth, height: canvas.clientHeight };
    const ratio = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
    if (canvas.width !== Math.round(size.width * ratio) || canvas.height !== Math.round(size.height * ratio)) {
      canvas.width = Math.round(size.width * ratio);
      canvas.height = Math.round(size.height * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, size.width, size.height);
    if (!clip) return;
    const theme = getComputedStyle(document.documentElement);
    const colour = { "-1": theme.getPropertyValue("--s0"), 0: theme.getPropertyValue("--ink"), 1: theme.getPropertyValue("--s1") };
    const frame = Math.min(Math.floor((clock * FRAMES_PER_SECOND) / clip.step), clip.frames - 1);
    pen.lineCap = pen.lineJoin = "round";
    for (let person = clip.persons - 1; person >= 0; person--) {
      if (trails.checked) {
        pen.lineWidth = 1.5;
        for (const joint of layout.ends) {
          pen.strokeStyle = colour[layout.sides[joint]];
          for (let t = Math.max(1, frame - TRAIL); t <= frame; t++) {
            const from = project(actor, t - 1, person, joint, size), to = project(actor, t, person, joint, size);
            if (!from || !to) continue;
            pen.globalAlpha = 0.5 * (1 - (frame - t) / TRAIL);
            pen.beginPath(); pen.moveTo(...from); pen.lineTo(...to); pen.stroke();
          }
        }
      }
      pen.globalAlpha = 1;
      pen.lineWidth = person ? 1.8 : 3.4;
      for (const [child, parent] of layout.edges) {
        const from = project(actor, frame, person, child, size), to = project(actor, frame, person, parent, size);
        if (!from || !to) continue;
        pen.strokeStyle = colour[layout.sides[child] || layout.sides[parent]];
        pen.beginPath(); pen.moveTo(...from); pen.lineTo(...to); pen.stroke();
      }
      for (let joint = 0; joint < layout.joints.length; joint++) {
        const at = project(actor, frame, person, joint, size);
        if (!at) continue;
        pen.fillStyle = colour[layout.sides[joint]];
        pen.beginPath(); pen.arc(at[0], at[1], person ? 1.6 : 2.6, 0, 2 * Math.PI); pen.fill();
      }
    }
    pen.fillStyle = theme.getPropertyValue("--muted");
    pen.font = "12px system-ui, sans-serif";
    pen.fillText(`frame ${Math.min(frame * clip.step + 1, clip.frames * clip.step)} of ${clip.frames * clip.step}`, 10, size.height - 10);
  }

  function show() {
    scrub.value = Math.round((1000 * clock) / length());
    actors.forEach(draw);
  }

  function step(now) {
    if (!playing) return;
    clock += (Math.min(now - last, 100) / 1000) * Number(speed.value);
    if (clock > length() + 0.4) clock = 0;
    last = now;
    show();
    requestAnimationFrame(step);
  }

  function setPlaying(on) {
    if (on && !playing) { last = performance.now(); requestAnimationFrame(step); }
    playing = on;
    play.textContent = on ? "Pause" : "Play";
    play.setAttribute("aria-pressed", String(on));
  }

  function describe(clip) {
    if (clip.sure === undefined) return classes[clip.label];  // shown as data, not as an answer
    const sure = `${(100 * clip.sure).toFixed(0)} %`;
    return clip.label === clip.predicted
      ? `${classes[clip.label]}, recognised (${sure})`
      : `${classes[clip.label]}, taken for ${classes[clip.predicted]} (${sure})`;
  }

  function put(actor, index) {
    actor.clip = index === undefined ? null : clips[index];
    actor.points = index === undefined ? null : points(index);
    actor.caption.textContent = actor.clip ? `${describe(actor.clip)}: ${actor.clip.id}` : "No clip of this class on the page.";
    clock = 0;
    show();
  }

  // Clips of class `label`, those taken for `other` first where asked, else those recognised.
  function clipsOf(label, other, mistakesFirst) {
    const own = clips.map((clip, index) => [clip, index]).filter(([clip]) => clip.label === label);
    const rank = ([clip]) => Number(clip.predicted !== (mistakesFirst ? other : label));
    return own.sort((a, b) => rank(a) - rank(b)).map(([, index]) => index);
  }

  function fill(actor, indices) {
    actor.select.replaceChildren(...indices.map((index) => {
      const option = document.createElement("option");
      option.value = index;
      option.textContent = clips[index].sure === undefined ? clips[index].id : describe(clips[index]);
      return option;
    }));
    put(actor, indices[0]);
  }

  // Left: class a, a clip taken for b if there is one. Right: class b, a recognised clip if there is one.
  function compare(a, b) {
    fill(actors[0], clipsOf(a, b, true));
    fill(actors[1], clipsOf(b, a, false));
  }

  play.addEventListener("click", () => setPlaying(!playing));
  scrub.addEventListener("input", () => { setPlaying(false); clock = (scrub.value / 1000) * length() - 1e-6; show(); });
  trails.addEventListener("change", show);
  byId("front").addEventListener("click", () => { yaw = 0; show(); });
  for (const actor of actors) {
    actor.select.addEventListener("change", () => put(actor, Number(actor.select.value)));
    let held = null;  // where the pointer was last seen; movementX is not told of touches everywhere
    actor.canvas.addEventListener("pointerdown", (event) => {
      held = event.clientX;
      actor.canvas.setPointerCapture(event.pointerId);
    });
    actor.canvas.addEventListener("pointermove", (event) => {
      if (!(event.buttons & 1) || held === null) return;
      yaw += (event.clientX - held) / 90;
      held = event.clientX;
      show();
    });
    new ResizeObserver(() => draw(actor)).observe(actor.canvas);
  }
  // A hidden stage must not keep the processor busy.
  new IntersectionObserver(([entry]) => { if (!entry.isIntersecting) setPlaying(false); }).observe(actors[0].canvas.parentElement.parentElement);
  return { compare, redraw: () => actors.forEach(draw), setPlaying, state: () => ({ clock, playing, yaw }) };
}
