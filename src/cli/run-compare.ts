import { alignDown } from '../../formats/core/units.ts';
import type { Image } from '../../formats/image/image.ts';
import { type CompareResult, compareDisks } from '../convert/compare.ts';
import { createHost, type HostOptions } from '../open/host.ts';
import { openDisk } from '../open/open-disk.ts';
import type { CompareCommandOptions } from './commands/compare.ts';
import type { CliContext } from './context.ts';
import { CommandStatus, reportError } from './exit.ts';
import { createProgress } from './progress.ts';

/** Exit statuses of `compare`, after qemu-img's. */
export const COMPARE_STATUS = { DIFFERENT: 1, OPEN_FAILED: 2, READ_FAILED: 4 } as const;

export interface RunCompareOptions
  extends Omit<CompareCommandOptions, 'json' | 'allow' | 'allowAny' | 'secretFile'>,
    HostOptions {
  readonly json: boolean;
}

/** Compares two disks and says what came of it. @throws {CommandStatus} unless they are the same */
export async function runCompare(
  context: CliContext,
  names: readonly [string, string],
  options: RunCompareOptions,
): Promise<void> {
  const images: Image[] = [];
  const interrupted = new AbortController();
  const stopListening = context.interrupts.once(() => interrupted.abort());
  try {
    const host = createHost({ ...options, signal: interrupted.signal, readsOnce: true });
    const { forceShare, strict, ignoreCid, format, secondFormat } = options;
    const open = (name: string, its: string | undefined) =>
      openDisk(host, name, { format: its, forceShare, strict, ignoreCid });
    await failingWith(COMPARE_STATUS.OPEN_FAILED, context, async () => {
      images.push(await open(names[0], format));
      images.push(await open(names[1], secondFormat));
    });
    const [a, b] = images as [Image, Image];
    if (options.exact === true && a.size !== b.size) {
      say(context, options, 'Strict mode: Image size mismatch!', { identical: false, reason: 'size' });
      throw new CommandStatus(COMPARE_STATUS.DIFFERENT);
    }
    await failingWith(COMPARE_STATUS.READ_FAILED, context, () => compare(context, a, b, options, interrupted.signal));
  } finally {
    stopListening();
    for (const image of images) await image.close().catch(() => undefined);
  }
}

async function compare(
  context: CliContext,
  a: Image,
  b: Image,
  options: RunCompareOptions,
  signal: AbortSignal,
): Promise<void> {
  const progress = createProgress(context, options, { label: 'comparing', total: Math.max(a.size, b.size) });
  let result: CompareResult;
  try {
    result = await compareDisks(a, b, {
      strict: options.exact,
      signal,
      progress: (done) => progress.update(done),
    });
  } finally {
    progress.end();
  }
  const { differsAt, allocationDiffersAt } = result;
  const shorter = Math.min(a.size, b.size);
  // As qemu-img: only once it is past the end of the shorter one.
  const sizesMatter = a.size !== b.size && (differsAt === undefined || differsAt >= shorter);
  if (sizesMatter && options.quiet !== true && !options.json) context.stdout.write('Warning: Image size mismatch!\n');
  if (differsAt !== undefined) {
    // QEMU counts in sectors, and so do those who parse this.
    const text = `Content mismatch at offset ${alignDown(differsAt, 512)}!`;
    say(context, options, text, { identical: false, reason: 'content', offset: differsAt });
    throw new CommandStatus(COMPARE_STATUS.DIFFERENT);
  }
  if (allocationDiffersAt !== undefined) {
    const text = `Strict mode: Offset ${allocationDiffersAt} block status mismatch!`;
    say(context, options, text, { identical: false, reason: 'allocation', offset: allocationDiffersAt });
    throw new CommandStatus(COMPARE_STATUS.DIFFERENT);
  }
  say(context, options, 'Images are identical.', { identical: true, sizes: [a.size, b.size] });
}

function say(context: CliContext, options: RunCompareOptions, text: string, json: object): void {
  if (options.json) context.stdout.write(`${JSON.stringify(json)}\n`);
  else if (options.quiet !== true) context.stdout.write(`${text}\n`);
}

/** Errors have statuses of their own here: 1 means that the images differ. */
async function failingWith(status: number, context: CliContext, act: () => Promise<void>): Promise<void> {
  try {
    await act();
  } catch (error) {
    if (error instanceof CommandStatus) throw error;
    const { text, help } = reportError(error);
    context.stderr.write(`lunette: ${text}\n`);
    if (help !== undefined) context.stderr.write(`${help}\n`);
    throw new CommandStatus(status);
  }
}
