// A watched page reloads itself, which shows newer results, but only while nobody uses it. What is open stays open.
(() => {
  const note = document.getElementById('watched');
  const seconds = Number(note.dataset.seconds);
  const unfolded = () => [...document.querySelectorAll('details')].map(each => [
    `${each.closest('section')?.id} ${each.querySelector('summary').textContent.replace(/\d+/g, '')}`, each,
  ]);

  const before = history.state?.report;
  history.scrollRestoration = before ? 'manual' : 'auto';
  if (before) {
    for (const [name, each] of unfolded()) each.open = before.open.includes(name);
    const section = document.getElementById(before.section);
    const top = section ? section.getBoundingClientRect().top - before.offset : before.offset;
    scrollTo({ top: scrollY + top, behavior: 'instant' });
    history.replaceState(null, '');
  }

  let used = Date.now();
  for (const kind of ['pointerdown', 'pointermove', 'keydown', 'input', 'wheel', 'scroll']) {
    addEventListener(kind, () => { used = Date.now(); }, { passive: true, capture: true });
  }
  const choices = () => [...document.querySelectorAll('input, select')].map(each => each.type === 'checkbox' ? each.checked : each.value).join('\n');
  const unchanged = choices();
  setInterval(() => {
    const isInUse = choices() !== unchanged || document.querySelector('th[aria-sort]') !== null;
    note.textContent = isInUse
      ? 'This page does not reload itself while a filter, a sorted table or a choice in the explorer is in use; reload it by hand to see newer results.'
      : `This page reloads itself to show newer results when it has not been used for ${seconds} seconds.`;
    if (isInUse || Date.now() - used < 1000 * seconds) return;
    const section = [...document.querySelectorAll('section')].findLast(each => each.getBoundingClientRect().top <= 1);
    history.replaceState({ report: {
      open: unfolded().filter(([, each]) => each.open).map(([name]) => name),
      section: section?.id, offset: section ? section.getBoundingClientRect().top : scrollY,
    } }, '');
    location.reload();
  }, 1000);
})();
