"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // Examples name the server that this page comes from.
  for (const code of all("pre code")) {
    code.textContent = code.textContent.replaceAll("http://127.0.0.1:8000", location.origin);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    if (navigator.clipboard) code.parentElement.append(button);
  }

  // A link to a schema opens it.
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) target.open = true;
    for (const link of all("nav li a")) link.classList.toggle("here", link.hash === location.hash);
  };
  addEventListener("hashchange", open);
  open();

  // Search: every word must occur.
  const search = document.getElementById("search");
  const find = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const hit = (text) => words.every((word) => text.includes(word));
    let found = 0;
    for (const each of all("[data-find]")) {
      each.hidden = !hit(each.dataset.find);
      found += !each.hidden;
    }
    for (const each of all(".schema")) each.hidden = words.length > 0 && !hit(each.id.toLowerCase());
    for (const section of all("nav section, main .tag")) {
      const held = all("[data-find]", section);
      section.hidden = words.length > 0 && held.length > 0 && held.every((each) => each.hidden);
    }
    document.getElementById("introduction").hidden = words.length > 0;
    document.getElementById("nothing").hidden = words.length === 0 || found > 0;
  };
  search.hidden = false;
  search.addEventListener("input", find);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== search) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "Escape" && document.activeElement === search) {
      search.value = "";
      find();
    }
  });

  // The theme: the system's, unless one was chosen.
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => (theme.textContent = isDark() ? "Light" : "Dark");
  try {
    root.dataset.theme = localStorage.getItem("theme") || "";
  } catch { /* without storage, the choice lasts as long as the page */ }
  theme.hidden = false;
  name();
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch { /* the same */ }
  });
})();
