import { stat } from 'node:fs/promises';
import { formatSize, hex } from '../../formats/core/units.ts';
import type { MappingDiff } from '../../formats/index.ts';
import { type DiffState, diffStates, inspectFile, selectSnapshot } from '../inspect/index.ts';
import type { CliContext } from './context.ts';
import { wantsJson } from './output.ts';
import { createProgress } from './progress.ts';
import { looking, type SnapshotOptions, selectBy } from './run-snapshot.ts';

export interface SnapshotDiffOptions extends SnapshotOptions {
  readonly content?: boolean;
  readonly progress?: boolean;
}

/** `snapshot diff`. */
export async function runDiff(
  context: CliContext,
  image: string,
  from: string,
  to: string | undefined,
  options: SnapshotDiffOptions,
): Promise<void> {
  const json = wantsJson(options);
  const by = selectBy(options);
  await looking(context, image, options, async (stage) => {
    const snapshots = await inspectFile(
      stage.path,
      { ...stage, notice: undefined },
      async ({ info }) => info.snapshots ?? [],
    );
    const stateOf = async (text: string): Promise<DiffState> => {
      const known = snapshots.some(({ id, name }) => id === text || name === text);
      if (!known && by === undefined && (await stat(text).catch(() => undefined))?.isFile() === true)
        return { file: text };
      return { snapshot: selectSnapshot(snapshots, text, by, stage.path).id };
    };
    const states = [await stateOf(from), to === undefined ? 'now' : await stateOf(to)] as const;
    const progress = createProgress(context, { ...options, json: json || options.json }, { label: 'comparing' });
    try {
      const settings = { ...stage, content: options.content, progress: (done: number) => progress.update(done) };
      await diffStates(stage.path, ...states, settings, async (diff) => {
        if (json) await printJson(context, stage.path, states, diff, options);
        else await printText(context, diff, options);
      });
    } finally {
      progress.end();
    }
  });
}

async function printText(context: CliContext, diff: MappingDiff, options: SnapshotDiffOptions): Promise<void> {
  const row = (offset: string, length: string, from: string, to: string): string =>
    `${offset.padEnd(18)} ${length.padEnd(18)} ${from.padEnd(11)} ${to}\n`;
  let [extents, bytes] = [0, 0];
  for await (const batch of diff.differences) {
    let text = extents === 0 ? row('OFFSET', 'LENGTH', 'FROM', 'TO') : '';
    for (const { start, length, from, to } of batch) {
      text += row(hex(start), hex(length), from, to);
      extents++;
      bytes += length;
    }
    context.stdout.write(text);
  }
  if (diff.fromSize !== diff.toSize) {
    context.stdout.write(
      `The disk has ${formatSize(diff.fromSize)} in one and ${formatSize(diff.toSize)} in the other.\n`,
    );
  }
  const what = options.content === true ? 'differ' : 'may differ: they are stored in other places';
  context.stdout.write(
    extents === 0
      ? 'No differences.\n'
      : `${formatSize(bytes)} (${bytes} bytes) in ${extents} ${extents === 1 ? 'extent' : 'extents'} ${what}.\n`,
  );
}

/** One object; extents are printed as they are found. */
async function printJson(
  context: CliContext,
  path: string,
  states: readonly [DiffState, DiffState],
  diff: MappingDiff,
  options: SnapshotDiffOptions,
): Promise<void> {
  const head = {
    filename: path,
    from: states[0],
    to: states[1],
    'from-size': diff.fromSize,
    'to-size': diff.toSize,
    content: options.content === true,
  };
  context.stdout.write(`${JSON.stringify(head, null, 2).slice(0, -2)},\n  "extents": [`);
  let [first, bytes] = [true, 0];
  for await (const batch of diff.differences) {
    let text = '';
    for (const { start, length, from, to } of batch) {
      text += `${first ? '' : ','}\n    {"start": ${start}, "length": ${length}, "from": "${from}", "to": "${to}"}`;
      first = false;
      bytes += length;
    }
    context.stdout.write(text);
  }
  context.stdout.write(`${first ? '' : '\n  '}],\n  "bytes": ${bytes}\n}\n`);
}
