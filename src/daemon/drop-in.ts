import path from 'node:path';
import type { DaemonConfig } from './config.ts';

/**
 * A drop-in for the systemd unit, whose file system is read-only otherwise: the directories that this configuration writes to.
 *
 * @see systemd.exec(5), ReadWritePaths
 */
export function dropInFor(config: DaemonConfig, file: string): string {
  const directories = new Set([config['state-directory'], ...config.allow]);
  for (const { image, overlay } of config.export) {
    // A URL is no place here.
    if (image.startsWith('/')) directories.add(path.dirname(image));
    if (overlay !== undefined) directories.add(path.dirname(overlay));
  }
  if (config.nbd.socket !== undefined) directories.add(path.dirname(config.nbd.socket));
  const lines = [...directories].sort().map((directory) => `ReadWritePaths=${quote(`-${directory}`)}`);
  return [`# Made from ${file} by lunette daemon --print-drop-in.`, '[Service]', ...lines, ''].join('\n');
}

/** As systemd reads values: specifiers are doubled, blanks and quotes need quoting. The dash: a directory may be missing. */
function quote(value: string): string {
  const escaped = value.replace(/%/g, '%%').replace(/["\\]/g, '\\$&');
  return /[\s"'\\]/.test(value) ? `"${escaped}"` : escaped;
}
