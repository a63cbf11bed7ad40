// Replaces what is live by what the server sends; without it the page is what it was when it was asked for.
"use strict";

function localTimes(within) {
  for (const time of within.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    time.title = time.textContent;
    time.textContent = moment.toLocaleString(document.documentElement.lang, {
      dateStyle: "medium",
      timeStyle: "medium",
    });
  }
}

function follow(live) {
  const said = document.querySelector("[data-said]");
  let source = null;
  let again = 0;
  let shown = "";
  let latest = "";

  function show(html) {
    latest = html;
    // Whoever selects text in it keeps what is selected.
    const selection = document.getSelection();
    const isSelected = !selection.isCollapsed && live.contains(selection.anchorNode);
    if (html === shown || isSelected) return;
    shown = html;
    const focused = live.contains(document.activeElement) && document.activeElement.href;
    live.innerHTML = html;
    localTimes(live);
    if (focused) [...live.querySelectorAll("a")].find((a) => a.href === focused)?.focus();
    const say = live.querySelector("[data-say]")?.textContent.replace(/\s+/g, " ").trim();
    if (said && say && said.textContent !== say) said.textContent = say;
  }

  function start() {
    source = new EventSource(live.dataset.live);
    source.onmessage = (event) => show(event.data);
    // A browser tries again where it is cut off, but not where an answer is an error, say in an outage.
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) again = setTimeout(start, 5000);
    };
    source.addEventListener("end", () => {
      source.close();
      document.removeEventListener("visibilitychange", onlyWhileSeen);
      // Nothing more comes that would show what a selection has held back.
      document.addEventListener("selectionchange", () => show(latest));
    });
  }

  // Nobody looks at a hidden page: it costs no reads.
  function onlyWhileSeen() {
    source.close();
    clearTimeout(again);
    if (!document.hidden) start();
  }

  document.addEventListener("visibilitychange", onlyWhileSeen);
  start();
}

localTimes(document);
document.querySelectorAll("[data-live]").forEach(follow);
