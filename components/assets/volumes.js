"use strict";
// Heat maps of PoseC3D members: one frame at a time, and all of them as a volume. See components/volumes.py.

function makeVolumes(members, classes) {
  const byId = (id) => document.getElementById(id), slide = byId("volume-frame"), play = byId("volume-play");
  const member = byId("volume-member"), clip = byId("volume-clip"), single = byId("volume-single"), stack = byId("volume-stack");
  let picture = null, tinted = null, timer = null;

  function load() {
    const chosen = members[member.value], shown = chosen.clips[clip.value];
    slide.max = chosen.frames.length - 1;
    picture = new Image();
    picture.onload = () => { tint(); draw(); };
    picture.src = `data:image/png;base64,${shown.data}`;
  }

  // The maps in the page's colours: left, middle and right as the skeletons have them.
  function tint() {
    if (!picture || !picture.complete) return;
    tinted = document.createElement("canvas");
    tinted.width = picture.width;
    tinted.height = picture.height;
    const pen = tinted.getContext("2d"), theme = getComputedStyle(document.documentElement);
    const colours = ["--s0", "--ink", "--s1"].map((name) => {
      const hex = theme.getPropertyValue(name).trim();
      return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    });
    pen.drawImage(picture, 0, 0);
    const pixels = pen.getImageData(0, 0, tinted.width, tinted.height), data = pixels.data;
    for (let at = 0; at < data.length; at += 4) {
      const part = [data[at], data[at + 1], data[at + 2]], whole = part[0] + part[1] + part[2];
      for (let k = 0; k < 3; k++) data[at + k] = whole ? (part[0] * colours[0][k] + part[1] * colours[1][k] + part[2] * colours[2][k]) / whole : 0;
      data[at + 3] = Math.max(...part);
    }
    pen.putImageData(pixels, 0, 0);
  }

  function prepare(canvas) {
    const ratio = window.devicePixelRatio || 1, size = { width: canvas.clientWidth, height: canvas.clientHeight };
    canvas.width = Math.round(size.width * ratio);
    canvas.height = Math.round(size.height * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, size.width, size.height);
    return [pen, size];
  }

  function draw() {
    if (!tinted) return;
    const { frames, length, stream, side } = members[member.value], now = Number(slide.value), theme = getComputedStyle(document.documentElement);
    const [pen, size] = prepare(single), edge = Math.min(size.width, size.height);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(tinted, now * side, 0, side, side, (size.width - edge) / 2, (size.height - edge) / 2, edge, edge);
    const [other, room] = prepare(stack), small = Math.min(room.width, room.height) * 0.5, last = frames.length - 1;
    const [stepX, stepY] = [(room.width - small - 8) / Math.max(last, 1), (room.height - small - 8) / Math.max(last, 1)];
    for (let t = last; t >= 0; t--) {  // the first frame lies in front
      const [x, y] = [4 + t * stepX, room.height - small - 4 - t * stepY];
      other.globalAlpha = t === now ? 1 : 0.55;
      other.drawImage(tinted, t * side, 0, side, side, x, y, small, small);
      other.globalAlpha = t === now ? 1 : 0.35;
      other.strokeStyle = theme.getPropertyValue(t === now ? "--accent" : "--line");
      other.lineWidth = t === now ? 2 : 1;
      other.strokeRect(x, y, small, small);
    }
    other.globalAlpha = 1;
    byId("volume-text").textContent = `${members[member.value].label}: ${classes[members[member.value].clips[clip.value].label]}, frame ${frames[now] + 1} of ${length}; ${stream === "limb" ? "limbs" : "key points"} of ${side} × ${side} pixels.`;
  }

  function setPlaying(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => { slide.value = (Number(slide.value) + 1) % (Number(slide.max) + 1); draw(); }, 140) : null;
    play.textContent = on ? "Pause" : "Play";
    play.setAttribute("aria-pressed", String(on));
  }

  member.replaceChildren(...members.map((each, index) => new Option(`${each.label} (${each.stream === "limb" ? "limbs" : "key points"})`, index)));
  clip.replaceChildren(...members[0].clips.map((each, index) => new Option(`${classes[each.label]}: ${each.id}`, index)));
  for (const chooser of [member, clip]) chooser.addEventListener("change", load);
  slide.addEventListener("input", () => { setPlaying(false); draw(); });
  play.addEventListener("click", () => setPlaying(!timer));
  new ResizeObserver(draw).observe(stack);
  new IntersectionObserver(([entry]) => { if (!entry.isIntersecting) setPlaying(false); }).observe(stack);
  load();
  return { redraw: () => { tint(); draw(); }, state: () => ({ playing: Boolean(timer), frame: Number(slide.value), ready: Boolean(tinted) }) };
}
