import { ImageError, UsageError } from '../../formats/core/errors.ts';
import { type ChainImage, creatorOf, diffQcow2 } from '../../formats/index.ts';
import { convertImage } from '../convert/convert.ts';
import { inspectFile, OnlyDifferences, requireInternalSnapshots, selectSnapshot } from '../inspect/index.ts';
import { createGate } from '../open/host.ts';
import { parseImageName } from '../open/name.ts';
import { secretsOf, targetSecretFiles } from '../open/secrets.ts';
import type { CliContext } from './context.ts';
import { asksForHelp, parseOptionTexts, renderOptions } from './create-options.ts';
import { wantsJson, warn } from './output.ts';
import { createProgress } from './progress.ts';
import { type Looking, looking, type SnapshotOptions, selectBy } from './run-snapshot.ts';

export interface SnapshotExportOptions extends SnapshotOptions {
  readonly outputFormat: string;
  readonly since?: string;
  readonly backing?: string;
  readonly backingFormat?: string;
  readonly options?: readonly string[];
  readonly compress?: boolean;
  readonly verify?: boolean;
  readonly progress?: boolean;
  readonly targetSecretFile?: string;
}

/** `snapshot export`: one snapshot as an image, or what it changes since another as an overlay. */
export async function runSnapshotExport(
  context: CliContext,
  image: string,
  text: string,
  target: string,
  options: SnapshotExportOptions,
): Promise<void> {
  if (asksForHelp(options.options)) {
    context.stdout.write(renderOptions(creatorOf(options.outputFormat)));
    return;
  }
  if (target === '-') {
    throw new UsageError('USAGE', 'snapshot export writes files', {
      help: 'lunette convert -l SNAPSHOT -O raw IMAGE - writes to a pipe.',
    });
  }
  checkOptions(options);
  const by = selectBy(options);
  await looking(context, image, options, async (stage) => {
    const before = await snapshotsOf(stage);
    const snapshot = selectSnapshot(before, text, by, stage.path);
    const since = options.since === undefined ? undefined : selectSnapshot(before, options.since, by, stage.path);
    const interrupted = new AbortController();
    const stopListening = context.interrupts.once(() => interrupted.abort());
    const lock = stage.forceShare ? 'shared' : 'default';
    const { parent, ignoreCid } = options;
    const disk = await stage.host.open(stage.path, {
      format: stage.format,
      snapshot: snapshot.id,
      lock,
      parent,
      ignoreCid,
    });
    const progress = createProgress(context, options, { label: 'copying', total: disk.size });
    try {
      const part = since === undefined ? undefined : await differencesSince(disk, since.id, snapshot.id);
      const { path } = parseImageName(target);
      await convertImage({
        sources: [disk],
        target: path,
        format: options.outputFormat,
        values: parseOptionTexts(options.options),
        compress: options.compress,
        verify: options.verify,
        signal: interrupted.signal,
        progress: (done) => progress.update(done),
        gate: createGate(options),
        secrets: secretsOf(targetSecretFiles(options)),
        settle: stage.forceShare
          ? () => checkStillThere(stage, [snapshot, ...(since === undefined ? [] : [since])])
          : undefined,
        warn: (message, from) => warn(context, options, `${from}: ${message}`),
        part: part === undefined ? undefined : { source: part, unchanged: OnlyDifferences.isSame },
        backing:
          options.backing === undefined ? undefined : { reference: options.backing, format: options.backingFormat },
      });
    } finally {
      progress.end();
      stopListening();
      await disk.close().catch(() => undefined);
    }
  });
}

function checkOptions({ since, backing, backingFormat, outputFormat, ...output }: SnapshotExportOptions): void {
  if (wantsJson(output)) throw new UsageError('USAGE', 'an export prints nothing that could be JSON');
  if (backing === undefined && backingFormat !== undefined) {
    throw new UsageError('USAGE', '-F is about a backing file, and there is none: name it with -b');
  }
  if (since === undefined && backing !== undefined) {
    throw new UsageError('USAGE', '-b is for --since: it names the image that holds the other snapshot');
  }
  if (since === undefined) return;
  if (outputFormat !== 'qcow2') throw new UsageError('USAGE', '--since writes overlays, which are qcow2 images');
  if (backing === undefined) {
    throw new UsageError('USAGE', '--since needs an image that holds the other snapshot, for the overlay to stand on', {
      help: `Export that one first, lunette snapshot export IMAGE ${since} BASE, then say -b BASE.`,
    });
  }
}

async function differencesSince(disk: ChainImage, since: string, snapshot: string): Promise<OnlyDifferences> {
  const [top] = disk.layers;
  if (top === undefined) throw new ImageError('INVALID', 'has no layers', { path: disk.path });
  const { differences } = await diffQcow2(top.storage, { id: since }, { id: snapshot });
  return OnlyDifferences.of(disk, differences);
}

function snapshotsOf(stage: Looking) {
  return inspectFile(stage.path, { ...stage, notice: undefined }, async ({ layer, info }) => {
    requireInternalSnapshots(layer);
    return info.snapshots ?? [];
  });
}

/** While others have the image: a snapshot that was deleted meanwhile has been read in part from what came after it. */
async function checkStillThere(stage: Looking, wanted: readonly { readonly id: string }[]): Promise<void> {
  const now = new Set((await snapshotsOf(stage)).map((each) => JSON.stringify(each)));
  if (wanted.every((each) => now.has(JSON.stringify(each)))) return;
  throw new ImageError('LOCKED', 'the snapshot was deleted or made anew while it was read: nothing has been written', {
    path: stage.path,
  });
}
