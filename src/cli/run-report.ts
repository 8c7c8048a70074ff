import { open, stat, writeFile } from 'node:fs/promises';
import { fromSystemError, LunetteError } from '../../formats/core/errors.ts';
import { DRIVERS } from '../../formats/index.ts';
import { collectReport, renderReport } from '../inspect/index.ts';
import type { CliContext } from './context.ts';
import { looking, type SnapshotOptions } from './run-snapshot.ts';

export interface ReportCommandOptions extends SnapshotOptions {
  /** The file; `-` is stdout. */
  readonly out: string;
}

/** `snapshot report`. */
export async function runReport(context: CliContext, image: string, options: ReportCommandOptions): Promise<void> {
  const { parent, ignoreCid } = options;
  const report = await looking(context, image, options, (stage) =>
    collectReport(stage.path, { ...stage, parent, ignoreCid }),
  );
  await writeText(context, options.out, renderReport(report), image);
}

/**
 * Writes a text that was asked for: to a file, or to stdout for `-`.
 *
 * @param about the image that the text is about
 * @throws {LunetteError} EXISTS rather than write over an image
 */
export async function writeText(context: CliContext, out: string, text: string, about: string): Promise<void> {
  if (out === '-') {
    context.stdout.write(text);
    return;
  }
  await refuseImage(out, about);
  await writeFile(out, text).catch((error: unknown) => {
    throw fromSystemError(error, `cannot write ${out}`, { path: out });
  });
}

/** Elsewhere -o means options: an image that is named by mistake must survive it. */
async function refuseImage(out: string, about: string): Promise<void> {
  const [there, image] = await Promise.all([stat(out).catch(() => undefined), stat(about).catch(() => undefined)]);
  if (there === undefined) return;
  let taken = there.isBlockDevice() || (there.ino === image?.ino && there.dev === image.dev);
  if (!taken && there.isFile()) {
    const head = new Uint8Array(4096);
    const file = await open(out, 'r');
    const { bytesRead } = await file.read(head, 0, head.length, 0).finally(() => file.close());
    taken = DRIVERS.some(({ name, probe }) => name !== 'raw' && probe(head.subarray(0, bytesRead)) > 0);
  }
  if (taken) throw new LunetteError('EXISTS', 'is an image: no page is written over it', { path: out });
}
