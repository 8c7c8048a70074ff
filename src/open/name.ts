import { LunetteError } from '../../formats/core/errors.ts';

/** Schemes that mean a URL rather than a file with a colon in its name, and what to do without them. */
const SCHEMES: Readonly<Record<string, string>> = {
  iscsi: 'Copy it to a file first: qemu-img convert -O qcow2 URL FILE.',
  json: 'Name the file itself, and its format with -f.',
};

/** Schemes of NBD, as libnbd and QEMU have them. */
const NBD_SCHEME = /^nbds?(\+unix|\+tcp|\+vsock)?$/;

/** `appliance.ova#disk2.vmdk`: a disk in an archive. Other files may have a # in their names. */
const ARCHIVE_MEMBER = /^(.*\.ova)#(.+)$/is;

/** A file; `member` names the disk where the file is an archive of several. */
export interface FileSource {
  readonly kind: 'file';
  readonly path: string;
  readonly member?: string;
}

/** A file on a web server, to read from; `member` as in FileSource. */
export interface HttpSource {
  readonly kind: 'http';
  readonly path: string;
  readonly member?: string;
}

/** An image that somebody else opens for us: an NBD server that is there, or QEMU's qemu-nbd (`qemu:FORMAT:PATH`). */
export interface RemoteSource {
  readonly kind: 'nbd' | 'qemu';
  /** As it was typed. */
  readonly url: string;
}

/** What a person means by IMAGE: a file, one on a web server, an export of an NBD server, or something for QEMU to open. */
export type ImageSource = FileSource | HttpSource | RemoteSource;

/**
 * What a person means by IMAGE on the command line.
 *
 * A name with a colon before its first slash is a URL when the scheme is a known one, as in qemu-img; `./name` is always a file.
 *
 * @throws {LunetteError} UNSUPPORTED for URLs, naming the scheme; INVALID for an empty name
 */
export function parseImageSource(text: string): ImageSource {
  if (text === '') throw new LunetteError('INVALID', 'the name of an image is empty');
  const scheme = /^([a-z][a-z0-9+.-]*):/i.exec(text)?.[1]?.toLowerCase();
  // `nbd:host:port`, QEMU's old spelling, has no slashes.
  if (scheme !== undefined && NBD_SCHEME.test(scheme)) return { kind: 'nbd', url: text };
  if (scheme === 'http' || scheme === 'https') return { ...fileSource(text), kind: 'http' };
  if (scheme === 'qemu') return { kind: 'qemu', url: text };
  if (scheme === 'file') return fileSource(filePath(text));
  const help = scheme === undefined ? undefined : SCHEMES[scheme];
  if (help === undefined) return fileSource(text);
  throw new LunetteError('UNSUPPORTED', `${scheme}: images cannot be opened by this version of lunette`, {
    path: text,
    help: `${help} (A file of that name: ./${text})`,
  });
}

function fileSource(text: string): FileSource {
  const [, path, member] = ARCHIVE_MEMBER.exec(text) ?? [];
  return path === undefined || member === undefined ? { kind: 'file', path: text } : { kind: 'file', path, member };
}

function filePath(text: string): string {
  if (!text.startsWith('file://')) return text.slice('file:'.length);
  const url = new URL(text);
  if (url.host !== '' && url.host !== 'localhost') {
    throw new LunetteError('UNSUPPORTED', `a file on another host (${url.host}) cannot be opened`, { path: text });
  }
  return decodeURIComponent(url.pathname);
}

/** Whether somebody else opens it for us. */
export function isRemote(source: ImageSource): source is RemoteSource {
  return source.kind === 'nbd' || source.kind === 'qemu';
}

const WHAT = {
  nbd: 'an NBD export',
  qemu: 'an image that QEMU opens',
  http: 'a file on a web server',
} as const;

/** The same where only a file can stand. @throws {LunetteError} UNSUPPORTED for URLs */
export function parseImageName(text: string): FileSource {
  const source = parseImageSource(text);
  if (source.kind === 'file') return source;
  throw new LunetteError('UNSUPPORTED', `${WHAT[source.kind]} cannot be used here, only a file`, { path: text });
}
