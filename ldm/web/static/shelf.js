// Pictures to choose from. Its value is a list of {name, title, file}; a click tells the name.
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button) trigger('select', {name: button.dataset.name});
});
