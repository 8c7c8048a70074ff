import { isIPv6 } from 'node:net';

/** Address and port as a URL or TargetAddress has them: IPv6 in brackets, IPv4 seen through an IPv6 socket as IPv4. */
export function formatAddress(address: string, port: number): string {
  const plain = address.replace(/^::ffff:(?=\d+\.\d+\.\d+\.\d+$)/i, '');
  // A zone (fe80::1%eth0) means something on this host only.
  return isIPv6(plain) ? `[${plain.replace(/%.*$/, '')}]:${port}` : `${plain}:${port}`;
}
