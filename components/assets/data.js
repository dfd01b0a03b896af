"use strict";
// The page of a data check: choosers of the clips shown, and the theme.

(function () {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const byId = (id) => document.getElementById(id);
  const stage = makeStage(data.layout, data.clips, data.classes);
  const sides = ["class-left", "class-right"].map(byId);
  const shown = [...new Set(data.clips.map((clip) => clip.label))];
  const show = () => stage.compare(...sides.map((side) => Number(side.value)));
  sides.forEach((side, number) => {
    side.replaceChildren(...shown.map((label) => new Option(data.classes[label], label)));
    side.selectedIndex = Math.min(number, shown.length - 1);
    side.addEventListener("change", show);
  });
  makeTheme(stage.redraw);
  show();
})();
