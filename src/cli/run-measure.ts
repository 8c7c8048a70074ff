import { UsageError } from '../../formats/core/errors.ts';
import { creatorOf, type Layer, readCreateValues } from '../../formats/index.ts';
import { bitmapBytes } from '../convert/bitmap-bytes.ts';
import { withSize } from '../convert/disk.ts';
import { type Measure, measureDisk } from '../convert/measure.ts';
import { createHost } from '../open/host.ts';
import { openDisk } from '../open/open-disk.ts';
import type { MeasureCommandOptions } from './commands/measure.ts';
import type { CliContext } from './context.ts';
import { asksForHelp, parseOptionTexts, renderOptions } from './create-options.ts';
import { formatJson } from './qemu-json.ts';

/** Prints what a conversion would take. */
export async function runMeasure(
  context: CliContext,
  name: string | undefined,
  options: MeasureCommandOptions,
  json: boolean,
  warn: (message: string, path: string) => void,
): Promise<void> {
  const creator = creatorOf(options.outputFormat);
  if (asksForHelp(options.options)) {
    context.stdout.write(renderOptions(creator));
    return;
  }
  const { backing_file, backing_fmt: _format, size, ...texts } = parseOptionTexts(options.options);
  if (size !== undefined)
    throw new UsageError('USAGE', '-o size: measured is a disk as large as IMAGE, or as --size says');
  const values = readCreateValues(creator, texts);
  const target = { format: creator.format, values, backing: backing_file !== undefined };
  if ((name === undefined) === (options.size === undefined)) {
    throw new UsageError('USAGE', 'Either --size N or one filename must be specified.');
  }
  if (name === undefined) {
    print(context, json, await measureDisk(creator.sizeOf(options.size ?? 0), target), undefined);
    return;
  }
  const { format, snapshot, forceShare, strict, parent, ignoreCid, allow, allowAny, secretFile } = options;
  const disk = { format, snapshot, forceShare, strict, parent, ignoreCid, secretFile };
  const image = await openDisk(createHost({ allow, allowAny, secretFile, warn }), name, disk);
  try {
    const measure = await measureDisk(withSize(image, creator.sizeOf(image.size)), target);
    const keepsBitmaps = creator.format === 'qcow2' && values.compat !== '0.10' && values.compat !== 'v2';
    const [top] = (image as { layers?: readonly Layer[] }).layers ?? [];
    print(
      context,
      json,
      measure,
      keepsBitmaps && top !== undefined ? await bitmapBytes(top, values.cluster_size as number) : undefined,
    );
  } finally {
    await image.close().catch(() => undefined);
  }
}

function print(context: CliContext, json: boolean, measure: Measure, bitmaps: number | undefined): void {
  const { required, fullyAllocated } = measure;
  if (json) {
    context.stdout.write(`${formatJson({ required, 'fully-allocated': fullyAllocated, bitmaps })}\n`);
    return;
  }
  const last = bitmaps === undefined ? '' : `bitmaps size: ${bitmaps}\n`;
  context.stdout.write(`required size: ${required}\nfully allocated size: ${fullyAllocated}\n${last}`);
}
