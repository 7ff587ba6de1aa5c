"use strict";
(() => {
  // Everything is on the page already and readable without this script; it only hides and counts.
  const STEP = 20;
  const form = document.getElementById("filters");
  const openAll = () => document.querySelectorAll("details.probe").forEach((part) => { part.open = true; });
  window.addEventListener("beforeprint", openAll);
  if (!form) return;
  const items = [...document.querySelectorAll("#items > .item")];
  const found = document.getElementById("found");
  const more = document.getElementById("more");
  const home = document.getElementById("items");
  const gap = (item) => Number(item.dataset.gap ?? -1);
  const ordered = { "": items, gap: [...items].sort((one, other) => gap(other) - gap(one)) };
  const texts = new Map();
  const text = (item) => {
    if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
    return texts.get(item);
  };
  let limit = STEP;

  const matches = (item, wanted, words) =>
    (!wanted.probe.value || item.dataset.probe === wanted.probe.value) &&
    (!wanted.score.value || item.dataset.scores.split(" ").includes(wanted.score.value)) &&
    (!wanted.disagrees.checked || "disagrees" in item.dataset) &&
    (!wanted.unscored.checked || "unscored" in item.dataset) &&
    (!words || text(item).includes(words));

  const show = () => {
    const words = form.elements.words.value.trim().toLowerCase();
    let fitting = 0;
    for (const item of ordered[form.elements.order.value]) {
      const fits = matches(item, form.elements, words);
      item.hidden = !fits || fitting >= limit;
      if (fits) fitting += 1;
    }
    const shown = Math.min(fitting, limit);
    found.textContent = fitting
      ? `${shown} of ${fitting} matching questions shown, ${items.length} on this page`
      : "No question matches: clear a filter to see more.";
    more.hidden = fitting <= limit;
    more.textContent = `show ${Math.min(STEP, fitting - limit)} more`;
  };
  const restart = () => { limit = STEP; show(); };

  const sort = () => home.append(...ordered[form.elements.order.value]);

  form.addEventListener("input", restart);
  form.elements.order.addEventListener("change", sort);
  form.addEventListener("reset", () => setTimeout(() => { sort(); restart(); }));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const before = limit;
    limit += STEP;
    show();
    const next = ordered[form.elements.order.value].filter((item) => !item.hidden)[before];
    if (next) next.querySelector("summary").focus();
  });
  form.hidden = false;
  show();
})();
