import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { LunetteError, UsageError } from '../../formats/core/errors.ts';
import type { Image } from '../../formats/image/image.ts';
import { type CreateValues, creatorOf, type ImageHost, readCreateValues } from '../../formats/index.ts';
import { convertImage } from '../convert/convert.ts';
import { convertOnto, type OntoOptions } from '../convert/onto.ts';
import { convertToStream } from '../convert/to-stream.ts';
import { createGate, createHost } from '../open/host.ts';
import { parseImageName, parseImageSource } from '../open/name.ts';
import { openDisk } from '../open/open-disk.ts';
import { secretsOf, targetSecretFiles } from '../open/secrets.ts';
import type { ConvertCommandOptions } from './commands/convert.ts';
import type { CliContext } from './context.ts';
import { asksForHelp, parseOptionTexts, renderOptions } from './create-options.ts';
import { oneLine } from './exit.ts';
import { createProgress } from './progress.ts';

type Warn = (message: string, path: string) => void;

/** Converts, or prints the options that the target could have. */
export async function runConvert(
  context: CliContext,
  images: readonly string[],
  options: ConvertCommandOptions,
  warn: Warn,
): Promise<void> {
  if (asksForHelp(options.options)) {
    context.stdout.write(renderOptions(creatorOf(options.outputFormat)));
    return;
  }
  const target = images[images.length - 1];
  const names = images.slice(0, -1);
  if (target === undefined || names.length === 0) {
    throw new UsageError('USAGE', 'convert needs an image to read and a target to write', {
      help: 'lunette convert -O FORMAT IMAGE TARGET',
    });
  }
  const parallel = parallelOf(options);
  const interrupted = new AbortController();
  const stopListening = context.interrupts.once(() => interrupted.abort());
  const host = createHost({
    allow: options.allow,
    allowAny: options.allowAny,
    secretFile: allSecretFiles(options),
    warn,
    signal: interrupted.signal,
    readsOnce: true,
  });
  const sources: Image[] = [];
  try {
    for (const name of names) {
      const { format, snapshot, forceShare, strict, parent, ignoreCid, secretFile } = options;
      const disk = { format, snapshot, forceShare, strict, parent, ignoreCid, secretFile, warn };
      sources.push(await openDisk(host, name, disk));
    }
    const total = sources.reduce((sum, { size }) => sum + size, 0);
    // Where the disk itself goes to stdout, all else goes to stderr.
    const text = STDOUT.has(target) ? context.stderr : context.stdout;
    const progress = createProgress({ ...context, stdout: text }, options, { label: 'copying', total });
    try {
      const common = {
        sources,
        parallel,
        sparseSize: options.sparse,
        memoryBytes: options.memory,
        signal: interrupted.signal,
        progress: (done: number) => progress.update(done),
        verify: options.verify,
        checksum: options.checksum,
        sync: options.sync === 'on',
        warn,
      };
      const { checksum } = await (isInPlace(target, options)
        ? convertInPlace(context, target, options, host, common)
        : convertImage({
            ...common,
            ...creation(options),
            resume: options.resume === true ? resumption(context, options, names, target) : undefined,
            target: parseImageName(target).path,
            gate: createGate(options),
            secrets: secretsOf(targetSecretFiles(options)),
          }));
      progress.end();
      if (checksum !== undefined) text.write(`${checksum}  ${target}\n`);
    } finally {
      progress.end();
    }
  } finally {
    stopListening();
    for (const source of sources) await source.close().catch(() => undefined);
  }
}

/** What is tried on files that are opened: a target in place among them. */
function allSecretFiles({ secretFile, targetSecretFile }: ConvertCommandOptions): readonly string[] | undefined {
  return targetSecretFile === undefined ? secretFile : [...(secretFile ?? []), targetSecretFile];
}

function resumption(context: CliContext, options: ConvertCommandOptions, names: readonly string[], target: string) {
  const { format, snapshot, parent, quiet } = options;
  const chosen = JSON.stringify({ format, snapshot, parent });
  return {
    names: names.map((name) => {
      const source = parseImageSource(name);
      return `${source.kind === 'file' ? resolve(source.path) : name} ${chosen}`;
    }),
    say(message: string) {
      if (quiet !== true) context.stderr.write(`lunette: ${oneLine(`${target}: ${message}`)}\n`);
    },
  };
}

function creation(options: ConvertCommandOptions) {
  const { backing_file, backing_fmt, size, ...values } = parseOptionTexts(options.options);
  if (size !== undefined) throw new UsageError('USAGE', '-o size: the target is as large as what is read');
  const reference = options.backing ?? backing_file;
  if (reference === undefined && (options.backingFormat ?? backing_fmt) !== undefined) {
    throw new UsageError('USAGE', '-F is about a backing file, and there is none: name it with -B');
  }
  if (options.targetIsZero === true) {
    throw new UsageError('USAGE', '--target-is-zero is for targets that are there: say -n, too');
  }
  return {
    format: options.outputFormat,
    values,
    compress: options.compress,
    backing: reference === undefined ? undefined : { reference, format: options.backingFormat ?? backing_fmt },
  };
}

const STDOUT = new Set(['-', '/dev/stdout']);

/** Whether the target is written where it is, and not under another name until it is complete. */
function isInPlace(target: string, { existing }: ConvertCommandOptions): boolean {
  if (existing === true || STDOUT.has(target)) return true;
  const source = parseImageSource(target);
  return source.kind !== 'file' || isBlockDevice(source.path);
}

/** False also for what cannot be looked at: writing it will say why. */
function isBlockDevice(path: string): boolean {
  try {
    return statSync(path).isBlockDevice();
  } catch {
    return false;
  }
}

/** What would silently do nothing. */
function refuseForPipes(options: ConvertCommandOptions): void {
  for (const [given, option] of [
    [options.verify, '--verify'],
    [options.backing, '-B'],
    [options.existing, '-n'],
  ] as const) {
    if (given !== undefined && given !== false) throw new UsageError('USAGE', `${option} means nothing for a pipe`);
  }
}

/** What goes to a pipe: raw bytes, or VMDK's stream with these options. */
function streamFor({ outputFormat, options, compress = false }: ConvertCommandOptions): CreateValues | undefined {
  if (outputFormat === 'raw') {
    if (compress) throw new UsageError('USAGE', '-c means nothing for a pipe that takes raw bytes');
    if (options !== undefined) throw new UsageError('USAGE', '-o means nothing for a pipe');
    return undefined;
  }
  const creator = creatorOf(outputFormat);
  const values = readCreateValues(creator, parseOptionTexts(options));
  if (values.subformat === 'streamOptimized') return values;
  throw new UsageError(
    'USAGE',
    `-O ${outputFormat} cannot be written to a pipe: its tables are written when all else is`,
    {
      help: 'Pipes take -O raw, and -O vmdk -o subformat=streamOptimized.',
    },
  );
}

type InPlaceOptions = Omit<OntoOptions, 'targetIsZero'>;

async function convertInPlace(
  context: CliContext,
  target: string,
  options: ConvertCommandOptions,
  host: ImageHost,
  common: InPlaceOptions,
): Promise<{ checksum: string | undefined }> {
  const { outputFormat, targetIsZero = false, compress } = options;
  if (options.resume === true) {
    throw new UsageError('USAGE', '--resume is for new files: what is written in place cannot be gone on with');
  }
  if (STDOUT.has(target)) {
    const write = context.stdout.writeBytes;
    refuseForPipes(options);
    const streamOptimized = streamFor(options);
    if (write === undefined) throw new UsageError('USAGE', 'there is no stdout for bytes');
    return convertToStream(write, { ...common, streamOptimized });
  }
  if (options.options !== undefined) {
    throw new UsageError('USAGE', '-o is for new images, and this target is there already');
  }
  if (options.backing !== undefined || options.backingFormat !== undefined)
    throw new UsageError('USAGE', '-B is for new images, and this target is there already');
  const image = await openDisk(host, target, {
    format: outputFormat,
    readOnly: false,
    secretFile: targetSecretFiles(options),
  }).catch((error: unknown) => {
    if (error instanceof LunetteError && error.code === 'BAD_MAGIC') {
      // We make no image on a device or a server.
      const source = parseImageSource(target);
      const maker = source.kind === 'file' && !isBlockDevice(source.path) ? 'lunette' : 'qemu-img';
      error.help = `It is written in place, into the ${outputFormat} image that it holds: make one there first (${maker} create -f ${outputFormat}), or convert into a new file.`;
    }
    throw error;
  });
  let failed = true;
  try {
    const result = await convertOnto(image, { ...common, targetIsZero, compress });
    failed = false;
    return result;
  } finally {
    if (failed) await image.close().catch(() => undefined);
    else await image.close();
  }
}

function parallelOf({ parallel }: ConvertCommandOptions): number | undefined {
  if (parallel === undefined) return undefined;
  const count = Number(parallel);
  if (Number.isInteger(count) && count >= 1 && count <= 64) return count;
  throw new UsageError('USAGE', `-m ${parallel}: a number from 1 to 64`);
}
