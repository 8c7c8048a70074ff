import { UsageError } from '../../formats/core/errors.ts';
import {
  addBitmap,
  type ChainImage,
  clearBitmap,
  disableBitmap,
  enableBitmap,
  mergeBitmap,
  openBitmap,
  removeBitmap,
} from '../../formats/index.ts';
import { createHost, explainFormat, type HostOptions } from '../open/host.ts';
import { parseImageName } from '../open/name.ts';

/** One of the things that a command line asks for. */
export type BitmapAction =
  | { readonly kind: 'add' | 'remove' | 'clear' | 'enable' | 'disable' }
  | { readonly kind: 'merge'; readonly source: string };

export interface RunBitmapOptions extends HostOptions {
  readonly format?: string | undefined;
  /** Bytes per bit of a new bitmap. */
  readonly granularity?: number | undefined;
  /** Where bitmaps to be merged are. Default: in the image itself. */
  readonly sourceFile?: string | undefined;
  readonly sourceFormat?: string | undefined;
}

/** Changes a bitmap of an image, action by action; the first that fails is the last. */
export async function runBitmap(
  imageName: string,
  name: string,
  actions: readonly BitmapAction[],
  options: RunBitmapOptions,
): Promise<void> {
  checkUsage(actions, options);
  const host = createHost(options);
  const open = (file: string, format: string | undefined, readOnly: boolean): Promise<ChainImage> =>
    host.open(parseImageName(file).path, { format, readOnly }).catch((error: unknown) => {
      throw explainFormat(error, format);
    });
  const image = await open(imageName, options.format, false);
  try {
    const { sourceFile } = options;
    const source = sourceFile === undefined ? image : await open(sourceFile, options.sourceFormat, true);
    for (const action of actions) {
      switch (action.kind) {
        case 'add':
          await addBitmap(image, name, { granularity: options.granularity });
          break;
        case 'remove':
          await removeBitmap(image, name);
          break;
        case 'clear':
          await clearBitmap(image, name);
          break;
        case 'enable':
          await enableBitmap(image, name);
          break;
        case 'disable':
          await disableBitmap(image, name);
          break;
        case 'merge':
          await mergeBitmap(image, name, await openBitmap(source, action.source));
          break;
      }
    }
  } finally {
    await host.close();
  }
}

function checkUsage(actions: readonly BitmapAction[], options: RunBitmapOptions): void {
  const refuse = (why: string): never => {
    throw new UsageError('USAGE', why, { help: 'lunette bitmap --help says what is possible.' });
  };
  if (actions.length === 0) {
    refuse('nothing is to be done: say one or more of --add, --remove, --clear, --enable, --disable and --merge');
  }
  if (options.granularity !== undefined && !actions.some(({ kind }) => kind === 'add')) {
    refuse('a granularity (-g) is for --add');
  }
  if (options.sourceFile !== undefined && !actions.some(({ kind }) => kind === 'merge')) {
    refuse('a source file (-b) is for --merge');
  }
  if (options.sourceFormat !== undefined && options.sourceFile === undefined) {
    refuse('a source format (-F) is for a source file (-b)');
  }
}
