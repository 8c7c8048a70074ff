/** Text for HTML and SVG. What comes from an image can hold anything. */

/** Markup that is safe to put into a page as it is. */
export interface Markup {
  readonly markup: string;
}

/** Builds markup: what is put in is escaped, unless it is markup itself. */
export function html(strings: TemplateStringsArray, ...values: readonly MarkupValue[]): Markup {
  let text = strings[0] ?? '';
  for (const [i, value] of values.entries()) text += render(value) + (strings[i + 1] ?? '');
  return { markup: text };
}

export type MarkupValue = string | number | Markup | undefined | readonly MarkupValue[];

function render(value: MarkupValue): string {
  if (value === undefined) return '';
  if (typeof value === 'object') return 'markup' in value ? value.markup : value.map(render).join('');
  return escapeMarkup(String(value));
}

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

/**
 * Escapes text for elements and quoted attributes. Control characters, which XML does not allow, and those that turn the direction of what
 * follows, are shown as their codes.
 */
export function escapeMarkup(text: string): string {
  return text
    .replace(/\p{Surrogate}/gu, '\ufffd')
    .replace(
      /[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]/g,
      (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`,
    )
    .replace(/[&<>"']/g, (c) => ENTITIES[c] as string);
}

/** Data for a script element of JSON: nothing in it can end the element. */
export function jsonMarkup(value: unknown): Markup {
  return { markup: JSON.stringify(value).replace(/</g, '\\u003c') };
}
