import { LunetteError, UsageError } from '../../formats/core/errors.ts';
import { parseSize, type ResizeOptions } from '../../formats/index.ts';
import { createHost, explainFormat, type HostOptions } from '../open/host.ts';
import { parseImageName } from '../open/name.ts';
import type { CliContext } from './context.ts';

export interface RunResizeOptions extends HostOptions {
  readonly format?: string | undefined;
  readonly shrink?: boolean | undefined;
  readonly preallocation?: ResizeOptions['preallocation'] | undefined;
  readonly quiet: boolean;
}

/** Changes the size of a disk. @throws {LunetteError} INVALID for a smaller one without `shrink` */
export async function runResize(
  context: CliContext,
  name: string,
  sizeText: string,
  options: RunResizeOptions,
): Promise<void> {
  const { format, shrink = false, preallocation = 'off' } = options;
  const [, sign = '', text = ''] = /^([+-]?)(.*)$/s.exec(sizeText) ?? [];
  const amount = parseSize(text);
  if (amount === undefined) {
    throw new UsageError('USAGE', `${sizeText} is no size`, {
      help: 'A size is a number of bytes, or one with k, M, G or T; +SIZE adds, -SIZE takes away.',
    });
  }
  const host = createHost(options);
  const image = await host.open(parseImageName(name).path, { format }).catch((error: unknown) => {
    throw explainFormat(error, format);
  });
  try {
    const before = image.size;
    const size = sign === '+' ? before + amount : sign === '-' ? before - amount : amount;
    if (size < 0) throw new LunetteError('INVALID', `it has ${before} bytes, less than ${amount}`, { path: name });
    if (size < before && !shrink) {
      // qemu-img's words: that is what programs look for.
      throw new LunetteError('INVALID', 'Use the --shrink option to perform a shrink operation.', {
        path: name,
        help: 'Shrinking an image deletes all data behind its new end: make sure that nothing important is there.',
      });
    }
    await image.resize(size, { shrink, preallocation });
  } finally {
    await image.close();
  }
  if (!options.quiet) context.stdout.write('Image resized.\n');
}
