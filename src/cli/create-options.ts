import { UsageError } from '../../formats/core/errors.ts';
import type { CreatedImage, CreateOption, FormatCreator } from '../../formats/index.ts';

/** `-o help` or `-o ?`. */
export function asksForHelp(texts: readonly string[] | undefined): boolean {
  return (texts ?? []).some((text) => text === 'help' || text === '?');
}

/**
 * Reads `-o name=value,name=value` of all times that it was given; a comma inside a value is written twice.
 *
 * @throws {UsageError} for a part without a name
 */
export function parseOptionTexts(texts: readonly string[] | undefined): Record<string, string> {
  const values: Record<string, string> = {};
  for (const text of texts ?? []) {
    for (const part of text.split(/(?<!,),(?!,)/)) {
      const [, name, value] = /^([^=]+)(?:=(.*))?$/s.exec(part.replaceAll(',,', ',')) ?? [];
      if (name === undefined) throw new UsageError('USAGE', `-o ${text}: options are written name=value`);
      values[name] = value ?? 'on';
    }
  }
  return values;
}

/** The options of a format, one a line. */
export function renderOptions(creator: FormatCreator): string {
  const left = creator.options.map((option) => `  ${option.name}=<${valueText(option)}>`);
  const width = Math.min(44, Math.max(0, ...left.map((text) => text.length)));
  const lines = creator.options.map((option, i) => {
    const initial = option.default === undefined ? '' : ` (default: ${showValue(option.default)})`;
    return `${(left[i] as string).padEnd(width)} - ${option.meaning}${initial}`;
  });
  return `Supported ${creator.format} options:\n${lines.join('\n')}\n`;
}

function valueText(option: CreateOption): string {
  switch (option.kind) {
    case 'boolean':
      return 'on|off';
    case 'choice':
      return (option.choices ?? []).join('|');
    case 'number':
      return 'num';
    case 'string':
      return 'str';
    default:
      return 'size';
  }
}

/** The line that qemu-img prints before it makes an image. */
export function renderFormatting(path: string, image: CreatedImage): string {
  const { backing, values } = image;
  const words = Object.entries({
    ...values,
    size: image.size,
    backing_file: backing?.reference,
    backing_fmt: backing?.format,
  })
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name}=${showValue(value as string | number | boolean)}`);
  return `Formatting '${path}', ${[`fmt=${image.format}`, ...words].join(' ')}\n`;
}

function showValue(value: string | number | boolean): string {
  return typeof value === 'boolean' ? (value ? 'on' : 'off') : String(value);
}
