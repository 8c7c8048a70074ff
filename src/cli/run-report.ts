import { writeFile } from 'node:fs/promises';
import { fromSystemError } from '../../formats/core/errors.ts';
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
  await writeText(context, options.out, renderReport(report));
}

/** Writes a text that was asked for: to a file, or to stdout for `-`. */
export async function writeText(context: CliContext, out: string, text: string): Promise<void> {
  if (out === '-') {
    context.stdout.write(text);
    return;
  }
  await writeFile(out, text).catch((error: unknown) => {
    throw fromSystemError(error, `cannot write ${out}`, { path: out });
  });
}
