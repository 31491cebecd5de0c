// Runs in the head, before anything is drawn: no flash of white for those who read in the dark.
if (document.documentElement.dataset.theme === "auto") {
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}

// Excerpts of what was found are fetched from the pages, which a browser forbids for files on a disk.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
