import { UsageError } from '../../formats/core/errors.ts';
import { parseSize } from '../../formats/core/units.ts';
import { type AmendQcow2Options, amendQcow2, CREATORS } from '../../formats/index.ts';
import { createHost, explainFormat, type HostOptions } from '../open/host.ts';
import { parseImageName } from '../open/name.ts';
import type { CliContext } from './context.ts';
import { asksForHelp, parseOptionTexts } from './create-options.ts';

const HELP = `Amend options for 'qcow2':
  backing_file=<str>       - must be what it is: rebase changes it
  backing_fmt=<str>        - must be what it is: rebase changes it
  compat=<0.10|1.1>        - compatibility level (v2 or v3)
  data_file=<str>          - another name for the external data file
  data_file_raw=<on|off>   - off: the data file need not stay valid as a raw image
  lazy_refcounts=<on|off>  - postpone refcounts until the image is closed
  refcount_bits=<num>      - width of a refcount
  size=<size>              - size of the disk
`;

/** Changes options of an image. */
export async function runAmend(
  context: CliContext,
  name: string,
  texts: readonly string[],
  options: HostOptions & { readonly format?: string | undefined },
): Promise<void> {
  if (asksForHelp(texts)) {
    context.stdout.write(HELP);
    return;
  }
  const { format } = options;
  const { size, ...changes } = readAmendOptions(parseOptionTexts(texts));
  const host = createHost(options);
  const image = await host.open(parseImageName(name).path, { format }).catch((error: unknown) => {
    throw explainFormat(error, format);
  });
  try {
    if (size !== undefined && size !== image.size) await image.resize(size);
    if (Object.values(changes).some((value) => value !== undefined)) await amendQcow2(image, changes);
  } finally {
    await image.close();
  }
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
