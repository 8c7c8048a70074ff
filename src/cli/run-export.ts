import path from 'node:path';
import { LunetteError, UsageError } from '../../formats/core/errors.ts';
import { formatSize } from '../../formats/core/units.ts';
import { type Address, isLoopback, parseAddress } from '../daemon/address.ts';
import { checkServerOptions, ImageServer, type ImageServerOptions, type ServedImage } from '../daemon/image-server.ts';
import type { ServedKernelImage } from '../daemon/kernel-export.ts';
import type { ServedNbdImage } from '../daemon/nbd-image-server.ts';
import type { ExportRequest } from '../daemon/open-export.ts';
import { defaultStateDirectory } from '../daemon/reservation-store.ts';
import { readSecret } from '../daemon/secret.ts';
import { howToAttach } from './attach-text.ts';
import type { ExportOptions } from './commands/export.ts';
import type { CliContext } from './context.ts';
import { oneLine } from './exit.ts';
import { createLog, type Log } from './log.ts';
import { checkTransportOptions, howToAttachNbd, nbdSettings } from './nbd-export.ts';

/** The well-known port of iSCSI. */
const ISCSI_PORT = 3260;
/** Nobody has registered this one for Prometheus; it is what --metrics HOST means without a port. */
const METRICS_PORT = 9926;
/** What is in flight gets this long, ms; then flushing begins. */
const GRACE_MS = 5000;
/** The promise is 10 s from the signal to the end. */
const STOP_TIMEOUT_MS = 9500;

type Served = ServedImage | ServedNbdImage | ServedKernelImage;

/** What the servers are to this command. */
interface RunningServer {
  readonly images: readonly Served[];
  readonly metricsAddress: Address | undefined;
  /** For people: how to attach. */
  readonly howTo: string;
  close(options: { graceMs: number }): Promise<void>;
}

/** Serves images until a signal comes. */
export async function runExport(images: readonly string[], options: ExportOptions, context: CliContext): Promise<void> {
  const json = options.json === true;
  const log = createLog(context, { ...options, json });
  checkUsage(options, images);
  const start = await PREPARE[options.transport ?? 'iscsi'](images, options, context, log);

  let stop: (signal: string) => void = () => undefined;
  const stopped = new Promise<string>((resolve) => {
    stop = resolve;
  });
  // From here on a signal ends the export in order, also one that comes while images are being opened.
  const ignore = context.interrupts.once((signal) => stop(signal));
  try {
    const server = await start();
    for (const image of server.images) context.stdout.write(`${json ? readyEvent(image) : readyLine(image)}\n`);
    if (!json && options.quiet !== true) context.stderr.write(server.howTo);
    if (server.metricsAddress !== undefined) {
      const { host, port } = server.metricsAddress;
      log.info({ host, port }, `metrics: http://${host.includes(':') ? `[${host}]` : host}:${port}/metrics`);
    }
    const signal = await stopped;
    log.info({ signal }, `${signal}: finishing what is in flight; a second one ends at once`);
    await withinTime(server.close({ graceMs: GRACE_MS }));
    if (json) context.stdout.write(`${JSON.stringify({ event: 'stopped', signal })}\n`);
  } finally {
    ignore();
  }
}

/** Checks everything that can be checked before an image is touched. @returns what starts the server */
type Prepare = (
  images: readonly string[],
  options: ExportOptions,
  context: CliContext,
  log: Log,
) => Promise<() => Promise<RunningServer>>;

const prepareIscsi: Prepare = async (images, options, context, log) => {
  const settings = await readSettings(images, options, context, log);
  usage(() => checkServerOptions(settings));
  return async () => {
    const server = await ImageServer.start(settings);
    return {
      images: server.images,
      metricsAddress: server.metricsAddress,
      howTo: howToAttach(server, options.chap !== undefined),
      close: (closing) => server.close(closing),
    };
  };
};

const prepareNbd: Prepare = async (images, options, _context, log) => {
  const { checkNbdOptions, NbdImageServer } = await import('../daemon/nbd-image-server.ts');
  const metrics = metricsAddress(options);
  const settings = { ...usage(() => nbdSettings(requests(images, options), options, log)), metrics };
  usage(() => checkNbdOptions(settings));
  return async () => {
    const server = await NbdImageServer.start(settings);
    return {
      images: server.images,
      metricsAddress: server.metricsAddress,
      howTo: howToAttachNbd(server),
      close: (closing) => server.close(closing),
    };
  };
};

const prepareLio: Prepare = async (images, options, context, log) => {
  const { checkKernelOptions, KernelExport } = await import('../daemon/kernel-export.ts');
  const { howToAttachKernel } = await import('./attach-kernel-text.ts');
  const {
    listen,
    chap,
    mutualChap,
    oneTarget,
    name,
    allowedInitiators,
    cacheBytes,
    allow,
    allowAny,
    optical,
    blockSize,
  } = await readSettings(images, options, context, log);
  const settings = {
    exports: requests(images, options),
    fabric: options.fabric ?? 'iscsi',
    ...{
      listen,
      chap,
      mutualChap,
      oneTarget,
      name,
      allowedInitiators,
      cacheBytes,
      allow,
      allowAny,
      optical,
      blockSize,
      log,
    },
  };
  usage(() => checkKernelOptions(settings));
  return async () => {
    const server = await KernelExport.start(settings);
    return {
      images: server.images,
      metricsAddress: undefined,
      howTo: howToAttachKernel(server),
      close: () => server.close(),
    };
  };
};

const PREPARE: Readonly<Record<NonNullable<ExportOptions['transport']>, Prepare>> = {
  iscsi: prepareIscsi,
  nbd: prepareNbd,
  lio: prepareLio,
};

/** `ready URL (FILE, FORMAT, SIZE)`: scripts wait for it. */
function readyLine(image: Served): string {
  const file = oneLine(path.basename(image.request.image));
  return `ready ${image.url} (${file}, ${image.format}, ${formatSize(image.size)})`;
}

function readyEvent(image: Served): string {
  const { request, ...facts } = image;
  return JSON.stringify({ event: 'ready', message: readyLine(image), ...facts, image: request.image });
}

async function withinTime(closing: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(
        new LunetteError('TIMEOUT', 'the images could not be flushed and closed in time', {
          help: 'What initiators had flushed is in the images; what they had not may be missing.',
        }),
      );
    }, STOP_TIMEOUT_MS);
  });
  try {
    await Promise.race([closing, late]);
  } finally {
    clearTimeout(timer);
  }
}

async function readSettings(
  images: readonly string[],
  options: ExportOptions,
  context: CliContext,
  log: Log,
): Promise<ImageServerOptions> {
  const listen = usage(() => parseAddress(options.listen ?? '127.0.0.1', ISCSI_PORT));
  const metrics = metricsAddress(options);
  const warn = (text: string): void => log.warn({}, text);
  const chap = await credentials('--chap', options.chap, options.chapSecretFile, warn);
  const mutualChap = await credentials('--mutual-chap', options.mutualChap, options.mutualChapSecretFile, warn);
  if (mutualChap !== undefined && chap === undefined) {
    throw new UsageError('USAGE', '--mutual-chap is for initiators that log in with --chap');
  }
  warnIfOpen(listen, chap !== undefined, options, warn);
  return {
    exports: requests(images, options),
    listen,
    metrics,
    chap,
    mutualChap,
    name: options.name,
    oneTarget: options.oneTarget,
    allowedInitiators: options.allowInitiator,
    blockSize: options.blockSize === undefined ? undefined : options.blockSize === '4096' ? 4096 : 512,
    removable: options.removable,
    optical: options.optical,
    cacheBytes: options.cache,
    allow: options.allow,
    allowAny: options.allowAny,
    stateDirectory: options.stateDir ?? defaultStateDirectory(context.env, context.privileged),
    log,
  };
}

function requests(images: readonly string[], options: ExportOptions): ExportRequest[] {
  const { format, snapshot, readOnly, ephemeral, overlay, forceShare, strict, parent, ignoreCid, force } = options;
  const { secretFile, discardNoUnref } = options;
  const same = {
    format,
    snapshot,
    readOnly,
    ephemeral,
    overlay,
    forceShare,
    strict,
    parent,
    ignoreCid,
    force,
    secretFile,
    discardNoUnref,
    bitmaps: options.bitmap,
  };
  return images.map((image) => ({ image, ...same }));
}

function metricsAddress({ metrics }: ExportOptions): Address | undefined {
  return metrics === undefined ? undefined : usage(() => parseAddress(metrics, METRICS_PORT));
}

function checkUsage(options: ExportOptions, images: readonly string[]): void {
  const { overlay } = options;
  checkTransportOptions(options);
  checkOptical(options);
  for (const [option, given] of [
    ['--overlay', overlay],
    ['--parent', options.parent],
  ] as const) {
    if (given !== undefined && images.length > 1) throw new UsageError('USAGE', `${option} is for one image`);
  }
}

/** A disc has blocks of its own size, and nothing is written to it. */
function checkOptical(options: ExportOptions): void {
  if (options.optical !== true) return;
  for (const [option, given] of [
    ['--block-size', options.blockSize],
    ['--ephemeral', options.ephemeral],
    ['--overlay', options.overlay],
  ] as const) {
    if (given !== undefined) throw new UsageError('USAGE', `${option} is not for --optical`);
  }
}

async function credentials(
  option: string,
  user: string | undefined,
  file: string | undefined,
  warn: (text: string) => void,
): Promise<{ user: string; secret: string } | undefined> {
  if (user === undefined && file === undefined) return undefined;
  if (user === undefined) throw new UsageError('USAGE', `${option}-secret-file needs ${option} USER`);
  if (file === undefined) throw new UsageError('USAGE', `${option} needs ${option}-secret-file FILE`);
  return { user, secret: await readSecret(file, warn) };
}

function warnIfOpen(listen: Address, hasChap: boolean, options: ExportOptions, warn: (text: string) => void): void {
  if (isLoopback(listen.host) || hasChap) return;
  const who = options.allowInitiator === undefined ? 'anybody' : 'anybody who claims an allowed name';
  const does = options.readOnly === true ? 'read' : 'read and write';
  warn(`${who} who reaches ${listen.host} can ${does} these images: add --chap USER --chap-secret-file FILE`);
}

/** What is wrong with an option's value is wrong with the command line. */
function usage<T>(parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof LunetteError) || error.code !== 'INVALID') throw error;
    throw new UsageError('USAGE', error.message, { path: error.path, help: error.help, cause: error });
  }
}
