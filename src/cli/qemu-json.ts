/**
 * JSON as qemu-img prints it: four spaces, one element per line, members in the order of QEMU's hash table. Programs parse it as
 * JSON, but scripts with grep and awk, and people with diff, see the layout too.
 */

/** A member's place in QEMU's dictionaries: 512 buckets, walked in order, the newest member of a bucket first. */
function bucketOf(key: string): number {
  const bytes = Buffer.from(key);
  let value = Math.imul(0x238f13af, bytes.length);
  for (let i = 0; i < bytes.length; i++) value = (value + ((bytes[i] as number) << ((i * 5) % 24))) | 0;
  return ((Math.imul(1103515243, value) + 12345) >>> 0) % 512;
}

/** The members of an object that have a value, in the order in which qemu-img prints them. */
export function membersInOrder(object: object): [string, unknown][] {
  return Object.entries(object)
    .filter(([, value]) => value !== undefined)
    .reverse()
    .map((entry) => ({ entry, bucket: bucketOf(entry[0]) }))
    .sort((a, b) => a.bucket - b.bucket)
    .map(({ entry }) => entry);
}

/** Formats a value; no newline at the end. */
export function formatJson(value: unknown, indent = ''): string {
  const inner = `${indent}    `;
  if (Array.isArray(value)) {
    const items = value.map((item) => `${inner}${formatJson(item, inner)}`).join(',\n');
    return items === '' ? `[\n${indent}]` : `[\n${items}\n${indent}]`;
  }
  if (typeof value === 'object' && value !== null) {
    const members = membersInOrder(value).map(([key, item]) => `${inner}${quote(key)}: ${formatJson(item, inner)}`);
    return members.length === 0 ? `{\n${indent}}` : `{\n${members.join(',\n')}\n${indent}}`;
  }
  return typeof value === 'string' ? quote(value) : String(value);
}

const NAMED_ESCAPES: Readonly<Record<string, string>> = {
  '"': '\\"',
  '\\': '\\\\',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
};

/** Only ASCII gets out: everything else is escaped by UTF-16 unit, with capital digits. */
function quote(text: string): string {
  const escaped = (unit: string): string =>
    NAMED_ESCAPES[unit] ?? `\\u${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`;
  return `"${text.replace(/["\\]|[^ -~]/g, escaped)}"`;
}
