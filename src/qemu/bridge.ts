import { stat, statfs } from 'node:fs/promises';
import { fromSystemError, LunetteError, UsageError } from '../../formats/core/errors.ts';
import { NbdImage } from '../nbd/client.ts';
import { formatNbdUri } from '../nbd/uri.ts';
import { findQemuNbd } from './program.ts';
import { BridgeServer } from './server.ts';
import { makeSocketDirectory, removeSocketDirectory, sweepSocketDirectories } from './socket-directory.ts';
import { BRIDGE_FORMATS, type BridgeSource, parseBridgeSource } from './source.ts';

export interface BridgeOptions {
  /** For a name that is a protocol's: QEMU's format of what is there. Default: raw. */
  readonly format?: string | undefined;
  readonly readOnly: boolean;
  /** An internal snapshot, by id or name. Only with readOnly. */
  readonly snapshot?: string | undefined;
  /** Take no locks. Only with readOnly, and for local files. */
  readonly forceShare?: boolean | undefined;
  /** File whose whole content is the passphrase of an encrypted image. In `qemu:json:` it is the secret called `lunette`. */
  readonly secretFile?: string | undefined;
  /** Hears what qemu-nbd says. */
  readonly warn?: ((message: string, path: string) => void) | undefined;
  /** qemu-nbd: a name on PATH, or a path. Default: LUNETTE_QEMU_NBD, else qemu-nbd. */
  readonly program?: string | undefined;
}

/** A disk that qemu-nbd opens for us. */
export interface Bridged {
  readonly image: NbdImage;
  /** Version of qemu-nbd. */
  readonly version: string;
  /** The local file, where there is one. */
  readonly file: string | undefined;
  /** Somebody has said what format the content is of: nothing was taken for raw by default. */
  readonly formatSaid: boolean;
  /** Process that is to end with the image. */
  readonly pid: number | undefined;
}

/** The secret's name towards QEMU. */
const SECRET_ID = 'lunette';

/**
 * Opens an image of a format that QEMU has, through a qemu-nbd of our own: `qemu:FORMAT:PATH`, `qemu:PROTOCOL:…`, `qemu:json:{…}`. The program
 * ends with the image, and with this process however that ends.
 *
 * @throws {LunetteError} USAGE for names that cannot be; UNAVAILABLE without qemu-nbd; what the program complains of, with a code
 */
export async function openBridge(text: string, options: BridgeOptions): Promise<Bridged> {
  const source = parseBridgeSource(text, options.format);
  const readOnly = options.readOnly || source.readOnly;
  checkOptions(source, options);
  const qemuNbd = await findQemuNbd(options.program);
  const args = await argumentsFor(source, { ...options, readOnly });
  await sweepSocketDirectories();
  const socket = await makeSocketDirectory();
  const server = new BridgeServer({
    qemuNbd,
    args,
    socket,
    lock: qemuNbd.flock ? await lockOf(source, { ...options, readOnly }) : undefined,
    path: text,
    warn: (message) => options.warn?.(message, text),
  });
  try {
    await server.ready();
    const image = await NbdImage.open(formatNbdUri({ path: socket }, '', false), {
      readOnly,
      keeper: server,
      shown: { path: text, format: source.format ?? 'raw' },
    });
    const formatSaid = source.format !== undefined;
    return { image, version: qemuNbd.version, file: source.file, formatSaid, pid: server.pid };
  } catch (error) {
    const better = await server.lastWords();
    await server.release().catch(() => removeSocketDirectory(socket));
    throw better ?? error;
  }
}

function checkOptions(source: BridgeSource, { readOnly, snapshot, forceShare, secretFile }: BridgeOptions): void {
  const usage = (why: string, help?: string): never => {
    throw new UsageError('USAGE', why, { path: source.text, help });
  };
  if (snapshot !== undefined && !readOnly) usage('a snapshot can only be read');
  if (forceShare === true && !readOnly) usage('without locks the image can only be read');
  if (forceShare === true && source.file === undefined) {
    usage('only a local file has locks to leave out', 'In JSON: "force-share":true.');
  }
  const format = BRIDGE_FORMATS.find(({ driver }) => driver === source.format);
  if (format?.secret === true && secretFile === undefined && source.file !== undefined) {
    throw new LunetteError('AUTH', `a ${format.title} image opens with its passphrase only`, {
      path: source.text,
      help: 'Name the file that holds it, and nothing else, not even a newline: --secret-file FILE.',
    });
  }
}

/** Formats of which QEMU lets two processes write to one file: they have no metadata to damage, but guests do. */
const SHARED_FORMATS: ReadonlySet<string | undefined> = new Set(['raw', 'luks']);
/** statfs(2) of NFS, where a lock on a whole file would keep out the ones that qemu-nbd takes itself. */
const NFS_MAGIC = 0x6969;

/** A lock of our own where QEMU's do not keep a second bridge out. */
async function lockOf(
  { format, file }: BridgeSource,
  { readOnly, forceShare }: BridgeOptions,
): Promise<{ file: string; exclusive: boolean } | undefined> {
  if (file === undefined || forceShare === true || !SHARED_FORMATS.has(format)) return undefined;
  const { type } = await statfs(file);
  return type === NFS_MAGIC ? undefined : { file, exclusive: !readOnly };
}

/** What qemu-nbd is told, one argument an item: no shell and no list of options with commas stands between a name and its driver. */
async function argumentsFor(source: BridgeSource, options: BridgeOptions): Promise<string[]> {
  const { readOnly, snapshot, secretFile } = options;
  const args = ['--discard=unmap', '--cache=writeback'];
  if (readOnly) args.push('--read-only');
  if (snapshot !== undefined) {
    // What starts like this would be taken for a list.
    args.push(`--load-snapshot=${/^snapshot\./.test(snapshot) ? `snapshot.name=${doubled(snapshot)}` : snapshot}`);
  }
  if (secretFile !== undefined) {
    args.push('--object', `secret,id=${SECRET_ID},file=${doubled(await readableFile(secretFile))}`);
  }
  if (source.filename !== undefined) {
    if (!source.filename.startsWith('json:')) args.push(`--format=${source.format ?? 'raw'}`);
    args.push('--', source.filename);
    return args;
  }
  const node: Record<string, unknown> = { driver: source.format, file: await fileNode(source) };
  if (secretFile !== undefined) node['key-secret'] = SECRET_ID;
  if (options.forceShare === true) node['force-share'] = true;
  args.push('--', `json:${JSON.stringify(node)}`);
  return args;
}

async function fileNode(source: BridgeSource): Promise<object> {
  const filename = source.file as string;
  try {
    const facts = await stat(filename);
    if (facts.isDirectory()) throw new LunetteError('INVALID', 'this is a directory', { path: source.text });
    return { driver: facts.isBlockDevice() ? 'host_device' : 'file', filename };
  } catch (error) {
    throw fromSystemError(error, 'cannot open it', { path: source.text });
  }
}

async function readableFile(file: string): Promise<string> {
  try {
    await stat(file);
    return file;
  } catch (error) {
    throw fromSystemError(error, 'cannot read the secret', { path: file });
  }
}

/** A comma in QEMU's lists of options is written twice. */
function doubled(text: string): string {
  return text.replaceAll(',', ',,');
}
