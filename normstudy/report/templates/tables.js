// Tables that sort by a click on a column's head, the filter of the table of runs, and what printing needs.

// Whether a text has all words, each at the start of a word of the text. A number must be whole: 16 is not in 160.
function hasWords(text, words) {
  return words.every(word => {
    const literal = word.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
    const end = /\d$/.test(word) ? '(?![\\d.]*\\d)' : '';
    return new RegExp(`(?<![\\p{L}\\d.])${literal}${end}`, 'u').test(text);
  });
}
const wordsOf = input => input.value.toLowerCase().split(/\s+/).filter(Boolean);

for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0];
  table.querySelectorAll('th').forEach((head, column) => head.onclick = () => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const isNumber = head.classList.contains('n');
    const rows = [...body.rows].map(row => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === '' || b === '') return (a === '') - (b === '');
      return (isNumber ? a - b : a.localeCompare(b)) * (up ? 1 : -1);
    });
    body.append(...rows.map(([, row]) => row));
  });
}

const filter = document.getElementById('filter');
if (filter) filter.oninput = () => {
  const words = wordsOf(filter);
  let shown = 0;
  for (const row of document.querySelectorAll('#runs-table tbody tr')) {
    const cells = [...row.cells].map(cell => cell.textContent).join(' ');
    row.hidden = !hasWords(`${cells} ${row.dataset.words ?? ''}`.toLowerCase(), words);
    shown += !row.hidden;
  }
  document.getElementById('shown').textContent = shown;
};
for (const link of document.querySelectorAll('a[data-filter]')) link.addEventListener('click', () => {
  for (const input of [filter, document.getElementById('explorer-filter')]) {
    if (!input) continue;
    input.value = link.dataset.filter;
    input.dispatchEvent(new Event('input', { bubbles: true }));
  }
});

const closed = [];
addEventListener('beforeprint', () => document.querySelectorAll('details:not([open])').forEach(part => {
  part.open = true;
  closed.push(part);
}));
addEventListener('afterprint', () => closed.splice(0).forEach(part => { part.open = false; }));
