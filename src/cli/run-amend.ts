import { UsageError } from '../../formats/core/errors.ts';
import { parseSize } from '../../formats/core/units.ts';
import { type AmendQcow2Options, amendQcow2, type ChainImage, CREATORS, checkAmendQcow2 } from '../../formats/index.ts';
import { createHost, explainFormat, type HostOptions } from '../open/host.ts';
import { parseImageName } from '../open/name.ts';
import type { CliContext } from './context.ts';
import { asksForHelp, parseOptionTexts } from './create-options.ts';
import { asksForKeySlots, runKeySlots } from './run-key-slots.ts';

const HELP = `Amend options for 'qcow2':
  backing_file=<str>       - must be what it is: rebase changes it
  backing_fmt=<str>        - must be what it is: rebase changes it
  compat=<0.10|1.1>        - compatibility level (v2 or v3)
  data_file=<str>          - another name for the external data file
  data_file_raw=<on|off>   - off: the data file need not stay valid as a raw image
  lazy_refcounts=<on|off>  - postpone refcounts until the image is closed
  refcount_bits=<num>      - width of a refcount
  size=<size>              - size of the disk, not less than it is

Key slots of an encrypted image, amended by themselves; --secret-file opens it:
  encrypt.state=<active|inactive>   - add a passphrase, or take one away
  encrypt.new-secret-file=<file>    - active: the file that holds the new passphrase
  encrypt.old-secret-file=<file>    - inactive: the file that holds the passphrase to take away
  encrypt.keyslot=<num>             - which one, 0 to 7; active: a free one if not said
  encrypt.iter-time=<num>           - active: time that opening shall take, milliseconds: 2000
`;

export interface RunAmendOptions extends HostOptions {
  readonly format?: string | undefined;
  /** Take away the last passphrase, too. */
  readonly force?: boolean | undefined;
  readonly quiet?: boolean | undefined;
}

/** Changes options of an image. What cannot be is refused before anything is changed. */
export async function runAmend(
  context: CliContext,
  name: string,
  texts: readonly string[],
  options: RunAmendOptions,
): Promise<void> {
  if (asksForHelp(texts)) {
    context.stdout.write(HELP);
    return;
  }
  const { format } = options;
  const values = parseOptionTexts(texts);
  if (asksForKeySlots(values)) return runKeySlots(context, name, values, options);
  const { size, ...changes } = readAmendOptions(values);
  const amends = Object.values(changes).some((value) => value !== undefined);
  const host = createHost(options);
  const opened = async <T>(act: (image: ChainImage) => Promise<T>): Promise<T> => {
    const image = await host.open(parseImageName(name).path, { format }).catch((error: unknown) => {
      throw explainFormat(error, format);
    });
    try {
      return await act(image);
    } finally {
      await image.close();
    }
  };
  const resize = async (image: ChainImage): Promise<void> => {
    if (size !== undefined && size !== image.size) await image.resize(size);
  };
  const amendedFirst = await opened(async (image) => {
    const amendFirst = await checkAmendQcow2(image, { ...changes, size });
    if (!amendFirst) await resize(image);
    if (amends) await amendQcow2(image, changes);
    return amendFirst;
  });
  // An image that was amended is to be opened again.
  if (amendedFirst) await opened(resize);
}

/** @throws {UsageError} for options that there are not, or that only a new image can have */
export function readAmendOptions(
  values: Readonly<Record<string, string>>,
): AmendQcow2Options & { readonly size?: number | undefined } {
  let result: AmendQcow2Options & { size?: number } = {};
  for (const [name, value] of Object.entries(values)) {
    switch (name) {
      case 'compat':
        result = { ...result, version: readVersion(value) };
        break;
      case 'lazy_refcounts':
        result = { ...result, lazyRefcounts: readBoolean(name, value) };
        break;
      case 'refcount_bits':
        if (!/^\d+$/.test(value)) refuse(`refcount_bits is a number, not ${value}`);
        result = { ...result, refcountBits: Number(value) };
        break;
      case 'data_file':
        result = { ...result, dataFile: value };
        break;
      case 'data_file_raw':
        result = { ...result, dataFileRaw: readBoolean(name, value) };
        break;
      case 'backing_file':
        result = { ...result, backingFile: value };
        break;
      case 'backing_fmt':
        result = { ...result, backingFormat: value };
        break;
      case 'size': {
        const size = parseSize(value);
        if (size === undefined) refuse(`${value} is no size`);
        result = { ...result, size: size as number };
        break;
      }
      default: {
        const known = CREATORS.find((creator) => creator.format === 'qcow2')?.options.some(
          (option) => option.name === name,
        );
        refuse(
          known === true ? `${name} is an option of new images: it cannot be amended` : `qcow2 has no option ${name}`,
        );
      }
    }
  }
  return result;
}

function readVersion(value: string): 2 | 3 {
  if (value === '0.10' || value === 'v2') return 2;
  if (value === '1.1' || value === 'v3') return 3;
  return refuse(`compat is 0.10 (v2) or 1.1 (v3), not ${value}`);
}

function readBoolean(name: string, value: string): boolean {
  if (/^(on|yes|true|y)$/.test(value)) return true;
  if (/^(off|no|false|n)$/.test(value)) return false;
  return refuse(`${name} is on or off, not ${value}`);
}

function refuse(why: string): never {
  throw new UsageError('USAGE', why, { help: 'lunette amend -o help IMAGE lists what can be amended.' });
}
