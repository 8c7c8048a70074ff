import path from 'node:path';
import { LunetteError } from '../../formats/core/errors.ts';
import { checkTargetName, MAX_NAME_LENGTH } from '../iscsi/names.ts';

/** What the names of our targets start with. */
export const IQN_PREFIX = 'iqn.2026-11.lunette.host:';
const IMAGE_EXTENSIONS = /\.(qcow2?|raw|img|image|vmdk|vdi|vhdx?|hdd|dmg|luks|qed|bin|iso|snap)$/i;

/**
 * A part of an iSCSI name from a file's name: letters, digits, dots and dashes, lower case. Never empty.
 *
 * Names are compared byte by byte by targets and folded by some initiators, so only what survives both is kept.
 */
export function nameOfFile(file: string): string {
  // JSON for QEMU names nothing.
  const named = file.replace(/^qemu:(json:.*|[a-z0-9+.-]*:)/is, '');
  const stem = path.basename(named).replace(IMAGE_EXTENSIONS, '');
  // Room is left for the number that makes a name unique.
  const room = MAX_NAME_LENGTH - IQN_PREFIX.length - 8;
  return (
    sanitise(stem)
      .slice(0, room)
      .replace(/[-.]+$/, '') || 'disk'
  );
}

function sanitise(text: string): string {
  return text
    .normalize('NFKD')
    .replace(/\p{M}+/gu, '')
    .toLowerCase()
    .replace(/[^a-z0-9.-]+/g, '-')
    .replace(/-{2,}/g, '-')
    .replace(/^[-.]+|[-.]+$/g, '');
}

/**
 * The target's name for what the user asked for: a whole iSCSI name (iqn., eui., naa.) is taken as it is, anything else is put
 * behind our prefix.
 *
 * @throws {LunetteError} INVALID
 */
export function targetName(name: string): string {
  const whole = checkTargetName(/^(iqn|eui|naa)\./i.test(name) ? name : `${IQN_PREFIX}${name}`);
  // The name becomes part of a URL; what stands for something there would need escapes that initiators do not agree on.
  if (name !== '' && /^[a-z0-9.:_-]+$/.test(whole)) return whole;
  throw new LunetteError('INVALID', `${JSON.stringify(name)} does not fit into the name of a target`, {
    help: 'Use letters, digits, dots, colons and dashes: --name disk1, or a whole iqn.YYYY-MM.DOMAIN:NAME.',
  });
}

/** Makes a name unlike the taken ones by a number at its end (`disk`, `disk-2`, `disk-3`), and takes it. */
export function uniqueName(name: string, taken: Set<string>): string {
  let candidate = name;
  for (let n = 2; taken.has(candidate); n++) candidate = `${name}-${n}`;
  taken.add(candidate);
  return candidate;
}
