import { ImageError } from '../../formats/core/errors.ts';
import { type ImageUsage, inspectFile, measureUsage, selectSnapshot } from '../inspect/index.ts';
import type { CliContext } from './context.ts';
import { wantsJson, warn } from './output.ts';
import { jsonText, looking, type SnapshotOptions, selectBy } from './run-snapshot.ts';
import { renderSnapshot, renderUsage, snapshotMembers, usageMembers } from './snapshot-text.ts';
import { widthOf } from './table.ts';

/** `snapshot usage`. */
export async function runUsage(context: CliContext, image: string, options: SnapshotOptions): Promise<void> {
  const json = wantsJson(options);
  const usage = await looking(context, image, options, (stage) => measureUsage(stage.path, stage));
  warnOfDamage(context, usage, options);
  context.stdout.write(json ? jsonText(usageMembers(usage)) : renderUsage(usage, widthOf(context.stdout)));
}

/** `snapshot show`. */
export async function runShow(
  context: CliContext,
  image: string,
  text: string,
  options: SnapshotOptions,
): Promise<void> {
  const json = wantsJson(options);
  const by = selectBy(options);
  await looking(context, image, options, async (stage) => {
    const size = await inspectFile(stage.path, stage, async ({ info }) => {
      selectSnapshot(info.snapshots ?? [], text, by, stage.path); // before anything is counted
      return info.virtualSize;
    });
    const usage = await measureUsage(stage.path, { ...stage, notice: undefined });
    warnOfDamage(context, usage, options);
    const { id } = selectSnapshot(
      usage.snapshots.map(({ snapshot }) => snapshot),
      text,
      by,
      stage.path,
    );
    const found = usage.snapshots.find(({ snapshot }) => snapshot.id === id);
    if (found === undefined) throw new ImageError('NOT_FOUND', `there is no snapshot ${id}`, { path: stage.path });
    context.stdout.write(json ? jsonText(snapshotMembers(found)) : renderSnapshot(stage.path, found, size));
  });
}

function warnOfDamage(context: CliContext, usage: ImageUsage, options: SnapshotOptions): void {
  if (usage.damaged === 0) return;
  warn(
    context,
    options,
    `${usage.path}: ${usage.damaged} references lead out of the file or to space that counts as free: figures may be wrong; see lunette check`,
  );
}
