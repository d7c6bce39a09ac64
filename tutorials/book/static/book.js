"use strict";
// A page that was opened as a file may not read the others, from which the search would quote.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// What was searched is marked in the page that one opens: not in the titles of icons, which cannot be marked, and no
// single letters, of which a page is full.  R̂ is searched as R.
for (const title of document.querySelectorAll("svg title")) title.classList.add("nohighlight");
try {
  const name = "sphinx_highlight_terms", terms = localStorage.getItem(name) ?? "";
  if (terms) localStorage.setItem(name, terms.split(" ").filter((term) => term.length > 1).join(" "));
} catch {
  // a browser that keeps nothing marks nothing
}
