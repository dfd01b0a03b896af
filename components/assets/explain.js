"use strict";
// The page of what a member has learned: topologies where there are any, and the theme.

(function () {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const topologies = data.members.length ? makeTopologies(data) : null;
  makeTheme(() => { if (topologies) topologies.redraw(); });
  window.sixstream = { data, topologies };  // for tests and the curious
})();
