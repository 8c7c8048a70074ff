import { isIPv6 } from 'node:net';
import { UsageError } from '../../formats/core/errors.ts';
import { MAX_STRING, NBD_PORT } from './protocol.ts';

/** Where a server is. */
export type NbdAddress = { readonly host: string; readonly port: number } | { readonly path: string };

/** An NBD URI, taken apart (doc/uri.md of the NBD project; the parameters for TLS are libnbd's). */
export interface NbdUri {
  readonly address: NbdAddress;
  /** '' is the server's default export. */
  readonly exportName: string;
  /** nbds: nothing is said in the clear but STARTTLS. */
  readonly tls: boolean;
  /** For a pre-shared key: who we are. */
  readonly user: string | undefined;
  /** File of pre-shared keys (`tls-psk-file`). */
  readonly pskFile: string | undefined;
  /** Directory with ca-cert.pem, and client-cert.pem and client-key.pem where the server wants them (`tls-certificates`). */
  readonly certificates: string | undefined;
  /** The name that the server's certificate must have (`tls-hostname`). Default: the host. */
  readonly hostname: string | undefined;
}

const SCHEMES = new Set(['nbd', 'nbds', 'nbd+unix', 'nbds+unix', 'nbd+tcp', 'nbds+tcp', 'nbd+vsock', 'nbds+vsock']);

/** True for what is meant as an NBD URI, also when something is wrong with it. */
export function isNbdUri(text: string): boolean {
  const scheme = /^([a-z+]+):/i.exec(text)?.[1]?.toLowerCase();
  return scheme !== undefined && SCHEMES.has(scheme);
}

/** @throws {UsageError} USAGE */
export function parseNbdUri(text: string): NbdUri {
  const fail = (why: string): never => {
    throw new UsageError('USAGE', `not an NBD address: ${why}`, {
      path: text,
      help: 'Write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH; nbds: for TLS.',
    });
  };
  const match = /^([a-z+]+):\/\/(?:([^/?#@]*)@)?([^/?#]*)(?:\/([^?#]*))?(?:\?([^#]*))?$/i.exec(text);
  if (match === null) return fail('it has no // or ends in something odd');
  const [, rawScheme = '', user, authority = '', name = '', query = ''] = match;
  const scheme = rawScheme.toLowerCase();
  if (scheme.endsWith('+vsock')) return fail('sockets between a virtual machine and its host cannot be opened here');
  if (!SCHEMES.has(scheme)) return fail(`${scheme}: is another protocol`);
  const decode = (part: string): string => {
    try {
      return decodeURIComponent(part);
    } catch {
      return fail(`${part} is no percent-encoding`);
    }
  };
  const parameters = new Map<string, string>();
  for (const pair of query.split(/[&;]/)) {
    const at = pair.indexOf('=');
    if (at > 0) parameters.set(decode(pair.slice(0, at)).toLowerCase(), decode(pair.slice(at + 1)));
  }
  const exportName = decode(name);
  if (Buffer.byteLength(exportName) > MAX_STRING || exportName.includes('\0'))
    return fail('the name of the export is too long or odd');
  return {
    address: scheme.endsWith('+unix')
      ? unixAddress(authority, parameters.get('socket'), fail)
      : tcpAddress(authority, fail),
    exportName,
    tls: scheme.startsWith('nbds'),
    user: parameters.get('tls-username') ?? (user === undefined || user === '' ? undefined : decode(user)),
    pskFile: parameters.get('tls-psk-file'),
    certificates: parameters.get('tls-certificates'),
    hostname: parameters.get('tls-hostname'),
  };
}

function unixAddress(authority: string, path: string | undefined, fail: (why: string) => never): NbdAddress {
  if (authority !== '') return fail('a unix socket has no host: three slashes');
  if (path === undefined || path === '') return fail('?socket=PATH is missing');
  return { path };
}

function tcpAddress(authority: string, fail: (why: string) => never): NbdAddress {
  const match = /^(?:\[([^\]]*)\]|([^:]*))(?::(\d{1,5})?)?$/.exec(authority);
  if (match === null) return fail(`${authority} is no HOST:PORT`);
  const host = match[1] ?? match[2] ?? '';
  if (match[1] !== undefined && !isIPv6(host)) return fail(`${host} is no IPv6 address`);
  const port = match[3] === undefined ? NBD_PORT : Number(match[3]);
  if (port === 0 || port > 65535) return fail(`${port} is no port`);
  return { host: host === '' ? 'localhost' : host, port };
}

/** The URI under which an export can be reached. */
export function formatNbdUri(address: NbdAddress, exportName: string, tls: boolean): string {
  const scheme = tls ? 'nbds' : 'nbd';
  const name = encodeURIComponent(exportName).replaceAll('%40', '@');
  if ('path' in address) {
    const path = encodeURIComponent(address.path).replaceAll('%2F', '/');
    return `${scheme}+unix:///${name}?socket=${path}`;
  }
  const host = isIPv6(address.host) ? `[${address.host}]` : address.host;
  return `${scheme}://${host}:${address.port}/${name}`;
}
