import { LunetteError } from '../../formats/core/errors.ts';
import type { Image } from '../../formats/image/image.ts';
import type { ChainImage, ImageHost, Layer } from '../../formats/index.ts';
import { explainFormat, refuseForeign } from '../open/host.ts';
import { isRemote, parseImageSource, type RemoteSource } from '../open/name.ts';
import { openRemoteImage } from '../open/remote-image.ts';
import { secretsOf } from '../open/secrets.ts';
import type { ServerLog } from './log.ts';
import { openEphemeral, openOverlay } from './overlay.ts';
import { ProbeGuard } from './probe-guard.ts';

/** One image to serve, and how. */
export interface ExportRequest {
  /** As a person types it: a path, an NBD URL, or `qemu:FORMAT:PATH`. */
  readonly image: string;
  /** What the target or export is called. Default: from the file's name. */
  readonly name?: string | undefined;
  /** As a SCSI unit: the disc in a CD or DVD drive. Default: what the server is told. */
  readonly optical?: boolean | undefined;
  /** As a SCSI unit: size of a logical block, bytes. Default: what the server is told. */
  readonly blockSize?: 512 | 4096 | undefined;
  /** Trust no probing. */
  readonly format?: string | undefined;
  /** An internal snapshot, by id or name; read-only unless writes go to an overlay. */
  readonly snapshot?: string | undefined;
  readonly readOnly?: boolean | undefined;
  /** NBD: dirty bitmaps that clients may ask for. Default: of an image that is only read all that are usable, else those that are disabled. */
  readonly bitmaps?: readonly string[] | undefined;
  /** Writes go to a temporary overlay. */
  readonly ephemeral?: boolean | undefined;
  /** Writes go to this qcow2 file, made if missing. */
  readonly overlay?: string | undefined;
  /** Take no locks on the image. Only with readOnly, snapshot, ephemeral or overlay: the image is not written to. */
  readonly forceShare?: boolean | undefined;
  /** Warnings about the image are failures. */
  readonly strict?: boolean | undefined;
  /** The file that a differencing image stands on, in place of what it names or of a search. */
  readonly parent?: string | undefined;
  /** A parent that was changed since the image was made is a warning, no error. */
  readonly ignoreCid?: boolean | undefined;
  /** Files that hold a passphrase each, and nothing else: all are tried on encrypted images. */
  readonly secretFile?: readonly string[] | undefined;
  /** Write to an image although another one stands on it. */
  readonly force?: boolean | undefined;
  /** qcow2: clusters that are discarded keep their place in the file, so that it is not scattered by use. */
  readonly discardNoUnref?: boolean | undefined;
}

export interface OpenedExport {
  readonly image: Image;
  /** Format of the file that was named, whatever stands above it. */
  readonly format: string;
  /** What is under guards, where it is opened here: it has snapshots. */
  readonly chain?: ChainImage | undefined;
}

/** @throws {LunetteError} INVALID when the request contradicts itself */
export function checkRequest(request: ExportRequest): void {
  const { image: path } = request;
  const fail = (why: string, help?: string): never => {
    throw new LunetteError('INVALID', why, { path, help });
  };
  if (request.ephemeral === true && request.overlay !== undefined) {
    fail('writes can go to a temporary overlay or to one that is kept, not to both');
  }
  if (request.readOnly === true && (request.ephemeral === true || request.overlay !== undefined)) {
    fail('a read-only export has no use for an overlay');
  }
  if (request.discardNoUnref === true && request.readOnly === true) {
    fail('a read-only export discards nothing: discard-no-unref is for what is written to');
  }
  const writes = request.readOnly !== true && request.snapshot === undefined && !isOverlaid(request);
  if (request.forceShare === true && writes) {
    fail('without locks the image can only be read', 'Add --read-only, --ephemeral or --overlay FILE.qcow2.');
  }
}

function isOverlaid(request: ExportRequest): boolean {
  return request.ephemeral === true || request.overlay !== undefined;
}

/**
 * Opens an image as it is to be served.
 *
 * @throws {LunetteError} what ImageHost.open throws; UNSUPPORTED for URLs and unknown formats
 */
export async function openExport(host: ImageHost, request: ExportRequest, log: ServerLog): Promise<OpenedExport> {
  const name = parseImageSource(request.image);
  if (isRemote(name)) return openRemote(name, request, log);
  const { path, member } = name;
  const overlaid = isOverlaid(request);
  const remote = name.kind === 'http'; // nobody writes there
  const readOnly = request.readOnly === true || request.snapshot !== undefined || overlaid || remote;
  const base = await openBase(host, path, member, readOnly, request);
  const { format } = base;
  const probedRaw = request.format === undefined && format === 'raw';
  if (probedRaw) await checkProbed(base);

  if (overlaid) {
    const { image, note } =
      request.overlay === undefined
        ? await openEphemeral(host, base, request)
        : await openOverlay(host, request.overlay, base, request);
    log.info({ image: request.image }, `${request.image}: ${note}`);
    if ((await (base.layers[0] as Layer).describe()).encrypted === true) {
      log.warn(
        { image: request.image },
        `${request.image}: the image is encrypted, and what is written to its overlay is not`,
      );
    }
    return { image, format, chain: image };
  }
  if (request.discardNoUnref === true && format !== 'qcow2') {
    await base.close();
    throw new LunetteError('UNSUPPORTED', `discard-no-unref is for qcow2 images, and this one is ${format}`, { path });
  }
  if (!probedRaw || readOnly) return { image: base, format, chain: base };
  log.warn(
    { image: request.image },
    `${request.image}: taken for raw by its content; writes that would make it look like another format are refused. Say -f raw to have none refused`,
  );
  const guard = new ProbeGuard(base, (text) => log.warn({ image: request.image }, text));
  return { image: guard, format, chain: base };
}

/** What another program opens, served on. */
async function openRemote(source: RemoteSource, request: ExportRequest, log: ServerLog): Promise<OpenedExport> {
  const { url } = source;
  if (request.discardNoUnref === true) {
    throw new LunetteError('UNSUPPORTED', 'discard-no-unref is for qcow2 images that are opened here', { path: url });
  }
  if (isOverlaid(request)) {
    throw new LunetteError('UNSUPPORTED', 'an overlay on what another program opens cannot be served', {
      path: url,
      help: `Make a copy to write to: lunette convert -O qcow2 ${url} COPY.qcow2; or serve it with --read-only.`,
    });
  }
  const { format, snapshot, secretFile, forceShare } = request;
  const readOnly = request.readOnly === true || snapshot !== undefined;
  const warn = (message: string): void => log.warn({ image: url }, `${url}: ${message}`);
  const { image, certain } = await openRemoteImage(source, {
    format,
    readOnly,
    snapshot,
    secretFile,
    forceShare,
    warn,
  });
  const opened = { format: image.format };
  if (certain || image.readOnly) return { image, ...opened };
  return { image: new ProbeGuard(image, (text) => log.warn({ image: url }, text)), ...opened };
}

async function openBase(
  host: ImageHost,
  path: string,
  member: string | undefined,
  readOnly: boolean,
  request: ExportRequest,
): Promise<ChainImage> {
  try {
    return await host.open(path, {
      format: request.format,
      readOnly,
      snapshot: request.snapshot,
      ...(request.secretFile === undefined ? {} : { secrets: secretsOf(request.secretFile) }),
      strict: request.strict,
      parent: request.parent,
      ignoreCid: request.ignoreCid,
      force: request.force,
      discardNoUnref: readOnly ? undefined : request.discardNoUnref,
      member,
      lock: request.forceShare === true ? 'shared' : 'default',
    });
  } catch (error) {
    if (error instanceof LunetteError) addHelp(error, readOnly);
    throw explainFormat(error, request.format);
  }
}

/** Says what to do about an image that does not open, where the command line has a way. */
function addHelp(error: LunetteError, readOnly: boolean): void {
  if (error.code === 'LOCKED') {
    error.help = readOnly
      ? 'It is being written to. Stop the program that does, or read it as it is at each moment with --force-share (-U).'
      : 'Stop the program that has it open; to leave the image as it is, use --read-only or --ephemeral; -U takes no locks.';
  } else if ((error.code === 'ACCESS' || error.code === 'READ_ONLY') && !readOnly) {
    error.help ??= 'If it may be read, serve it with --read-only, or with --ephemeral.';
  } else if (error.code === 'CORRUPT' && !readOnly) {
    error.help ??= 'It may still be read: --read-only.';
  }
}

async function checkProbed(image: ChainImage): Promise<void> {
  try {
    await refuseForeign((image.layers[0] as Layer).storage);
  } catch (error) {
    await image.close();
    throw error;
  }
}
