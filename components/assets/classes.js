"use strict";
// The table of classes: accuracy with Wilson's interval, change against another row, most frequent confusion.

function makeClasses(rows, classes, onChoose) {
  const byId = (id) => document.getElementById(id), body = document.querySelector("#class-table tbody");
  const pick = byId("class-row"), base = byId("class-base"), sort = byId("class-sort");
  const moved = byId("class-moved"), find = byId("class-find");

  // Per class: clips, right ones, and the class most often predicted instead.
  function tally(row) {
    const out = classes.map(() => ({ clips: 0, right: 0, rival: null, taken: 0 }));
    for (const [i, j, n] of row.cells) {
      out[i].clips += n;
      if (i === j) out[i].right = n;
      else if (n > out[i].taken) { out[i].taken = n; out[i].rival = j; }
    }
    return out;
  }

  function wilson(right, clips) {
    const z = 1.959963984540054, p = right / clips, grow = 1 + (z * z) / clips;
    const middle = (p + (z * z) / (2 * clips)) / grow;
    const half = (z / grow) * Math.sqrt((p * (1 - p)) / clips + (z * z) / (4 * clips * clips));
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  }

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  function bar(entry) {
    const rate = make("span", "rate"), line = make("span", "bar");
    const part = (name, from, width) => {
      const piece = make("i", name);
      piece.style.left = `${100 * from}%`;
      if (width !== undefined) piece.style.width = `${100 * width}%`;
      line.append(piece);
    };
    part("", 0, 1);
    part("value", 0, entry.accuracy);
    part("span", entry.low, entry.high - entry.low);
    if (entry.before !== null) part("base", entry.before);
    rate.append(make("span", "number", (100 * entry.accuracy).toFixed(1)), line);
    return rate;
  }

  function line(entry) {
    const row = make("tr"), name = make("th"), open = make("button", "link", classes[entry.index]);
    const rival = entry.rival === null ? entry.index : entry.rival;
    open.type = "button";
    open.addEventListener("click", () => onChoose(entry.index, rival));
    name.scope = "row";
    name.append(open);
    const change = make("td", "number " + (entry.change > 0 ? "gain" : entry.change < 0 ? "loss" : ""));
    change.textContent = entry.change === null ? "–" : `${entry.change > 0 ? "+" : ""}${(100 * entry.change).toFixed(1)}`;
    const cell = make("td");
    cell.append(bar(entry));
    const taken = make("td", "", entry.rival === null ? "–" : `${classes[entry.rival]} (${entry.taken})`);
    row.append(name, make("td", "number", entry.clips), cell, change, taken);
    return row;
  }

  function fill() {
    const mine = tally(rows[pick.value]), theirs = base.value === "" ? null : tally(rows[base.value]);
    let entries = mine.map((entry, index) => {
      const accuracy = entry.right / entry.clips, before = theirs ? theirs[index].right / theirs[index].clips : null;
      const [low, high] = entry.clips ? wilson(entry.right, entry.clips) : [0, 1];
      return { ...entry, index, accuracy, low, high, before, change: theirs ? accuracy - before : null };
    }).filter((entry) => entry.clips > 0);
    const all = entries.length, changed = entries.filter((entry) => Math.abs(entry.change) > 0.01);
    if (moved.checked) entries = changed;
    const wanted = find.value.trim().toLowerCase();
    entries = entries.filter((entry) => classes[entry.index].toLowerCase().includes(wanted));
    const by = {
      accuracy: (a, b) => a.accuracy - b.accuracy, change: (a, b) => b.change - a.change,
      name: (a, b) => classes[a.index].localeCompare(classes[b.index]), count: (a, b) => b.clips - a.clips,
    };
    entries.sort((a, b) => by[sort.value](a, b) || a.index - b.index);
    body.replaceChildren(...entries.map(line));
    const gained = changed.filter((entry) => entry.change > 0).length;
    byId("class-text").textContent = `${entries.length} of ${all} classes.` + (theirs
      ? ` Against ${rows[base.value].label} (orange mark): ${gained} gained and ${changed.length - gained} lost more than 1 point.` : "");
  }

  [pick, base, sort, moved].forEach((element) => element.addEventListener("change", fill));
  find.addEventListener("input", fill);
  return { fill };
}
