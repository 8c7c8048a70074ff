import { isDeepStrictEqual } from 'node:util';
import type { ConfiguredExport, DaemonConfig } from './config.ts';

/** What a new configuration means for a daemon that runs with another. */
export interface ConfigChanges {
  readonly added: readonly ConfiguredExport[];
  readonly removed: readonly ConfiguredExport[];
  /** Exports that are closed and opened again: as they were, as they will be. */
  readonly changed: readonly { readonly from: ConfiguredExport; readonly to: ConfiguredExport }[];
  /** Keys that take effect when the daemon is started again. */
  readonly later: readonly string[];
}

/** Compares two configurations; exports are the same by their names. */
export function compareConfigs(from: DaemonConfig, to: DaemonConfig): ConfigChanges {
  const before = new Map(from.export.map((entry) => [entry.name, entry]));
  const after = new Map(to.export.map((entry) => [entry.name, entry]));
  const keys = differingKeys(from, to);
  return {
    added: to.export.filter(({ name }) => !before.has(name)),
    removed: from.export.filter(({ name }) => !after.has(name)),
    changed: to.export.flatMap((entry) => {
      const old = before.get(entry.name);
      return old === undefined || isDeepStrictEqual(old, entry) ? [] : [{ from: old, to: entry }];
    }),
    later: keys,
  };
}

/** `key` or `section.key` of what differs outside `export`. */
function differingKeys(from: DaemonConfig, to: DaemonConfig): string[] {
  const keys: string[] = [];
  for (const key of new Set([...Object.keys(from), ...Object.keys(to)]) as Set<keyof DaemonConfig>) {
    const [a, b]: unknown[] = [from[key], to[key]];
    if (key === 'export' || isDeepStrictEqual(a, b)) continue;
    if (!isSection(a) || !isSection(b) || key === 'metrics') {
      keys.push(key);
      continue;
    }
    for (const inner of new Set([...Object.keys(a), ...Object.keys(b)])) {
      if (!isDeepStrictEqual(a[inner], b[inner])) keys.push(`${key}.${inner}`);
    }
  }
  return keys;
}

function isSection(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The changes for the log, a line each; none: nothing has changed. */
export function describeChanges(changes: ConfigChanges): string[] {
  const named = (word: string, entries: readonly ConfiguredExport[]): string[] =>
    entries.map(({ name, image, transport }) => `${word} export ${name} (${image} over ${transport})`);
  return [
    ...named('removed', changes.removed),
    ...named('added', changes.added),
    ...changes.changed.map(({ from, to }) => {
      const keys = [...new Set([...Object.keys(from), ...Object.keys(to)])] as (keyof ConfiguredExport)[];
      const differ = keys.filter((key) => !isDeepStrictEqual(from[key], to[key]));
      return `changed export ${to.name}: ${differ.join(', ')}`;
    }),
    ...changes.later.map((key) => `changed ${key}: takes effect when the daemon is started again`),
  ];
}
