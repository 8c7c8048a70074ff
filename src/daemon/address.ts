import { isIPv4, isIPv6 } from 'node:net';
import { networkInterfaces } from 'node:os';
import { errnoOf, fromSystemError, LunetteError, StorageError } from '../../formats/core/errors.ts';
import { formatAddress } from '../iscsi/names.ts';
import { portHolder } from './port-holder.ts';

/** A TCP address to listen on. */
export interface Address {
  /** IP address or host name, without brackets. */
  readonly host: string;
  /** 0: any free port. */
  readonly port: number;
}

/**
 * Reads `HOST:PORT`, `[IPV6]:PORT`, `HOST` or a port alone (on 127.0.0.1).
 *
 * @throws {LunetteError} INVALID
 */
export function parseAddress(text: string, defaultPort: number): Address {
  const fail = (why: string): never => {
    throw new LunetteError('INVALID', `${JSON.stringify(text)} is no address to listen on: ${why}`, {
      help: `Write HOST:PORT, for example 127.0.0.1:${defaultPort} or [::1]:${defaultPort}; port 0 picks a free one.`,
    });
  };
  const portOf = (digits: string | undefined): number => {
    if (digits === undefined) return defaultPort;
    const port = Number(digits);
    return /^\d{1,5}$/.test(digits) && port <= 65535 ? port : fail(`${digits} is no port`);
  };
  if (/^\d+$/.test(text)) return { host: '127.0.0.1', port: portOf(text) };
  const bracketed = /^\[([^\]]*)\](?::(.*))?$/.exec(text);
  if (bracketed !== null) {
    const host = bracketed[1] as string;
    return isIPv6(host) ? { host, port: portOf(bracketed[2]) } : fail(`${host} is no IPv6 address`);
  }
  const parts = text.split(':');
  if (parts.length > 2) fail('an IPv6 address goes in brackets');
  const [host = '', port] = parts;
  if (host === '') fail('the host is missing; 0.0.0.0 stands for every interface');
  return { host, port: portOf(port) };
}

/** True when only programs on this machine can connect. */
export function isLoopback(host: string): boolean {
  return (
    host === 'localhost' || host === '::1' || host === '::ffff:127.0.0.1' || (isIPv4(host) && host.startsWith('127.'))
  );
}

/** The address that others connect to: for a wildcard the machine's first own address of that family, else the loopback's. */
export function connectHost(host: string): string {
  if (host !== '0.0.0.0' && host !== '::') return host;
  const family = host === '::' ? 'IPv6' : 'IPv4';
  for (const addresses of Object.values(networkInterfaces())) {
    // A link-local address is of no use without the name of the interface.
    const own = addresses?.find((a) => a.family === family && !a.internal && !a.address.startsWith('fe80:'));
    if (own !== undefined) return own.address;
  }
  return family === 'IPv6' ? '::1' : '127.0.0.1';
}

/** Says why listening failed: who has the port, where that can be known, and what to do. */
export function addressError(error: unknown, { host, port }: Address, what: string): LunetteError {
  const path = formatAddress(host, port);
  switch (errnoOf(error)) {
    case 'EADDRINUSE': {
      const holder = portHolder(port);
      const who = holder === undefined ? 'another program' : `${holder.name} (process ${holder.pid})`;
      return new StorageError('EXISTS', `${who} listens on this port already`, {
        path,
        help: `Take another one for ${what}; port 0 picks a free one: ${formatAddress(host, 0)}.`,
        cause: error,
      });
    }
    case 'EACCES':
      return new StorageError('ACCESS', 'ports below 1024 are for root', { path, cause: error });
    case 'EADDRNOTAVAIL':
      return new StorageError('NOT_FOUND', 'this machine has no such address', {
        path,
        help: 'Addresses of this machine: ip -brief address. 0.0.0.0 stands for all of them.',
        cause: error,
      });
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return new StorageError('NOT_FOUND', `there is no host called ${host}`, { path, cause: error });
    default:
      return fromSystemError(error, `cannot listen for ${what}`, { path });
  }
}
