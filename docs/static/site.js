// Excerpts of what was found are fetched from the pages, which a browser forbids for files on a disk.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// On a phone the contents of the page cover it: they close once one of them is chosen.
document.querySelector(".toc-drawer").addEventListener("click", e => {
  if (e.target.closest("a")) document.getElementById("__toc").checked = false;
});

// What scrolls sideways can be scrolled with the arrow keys, too.
for (const box of document.querySelectorAll(".cell_output, .cell_output .output, .math, .table-wrapper"))
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
