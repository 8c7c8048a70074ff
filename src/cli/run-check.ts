import { checkImage, codeOf, ImageError, SharedBlockCache } from '../../formats/index.ts';
import { openStorage } from '../io/open-storage.ts';
import { createGate, createHost, DEFAULT_CACHE_BYTES, explainFormat, type HostOptions } from '../open/host.ts';
import { parseImageName } from '../open/name.ts';
import { checkMembers, renderCheck } from './check-text.ts';
import type { CliContext } from './context.ts';
import { CommandStatus, oneLine } from './exit.ts';
import { formatJson } from './qemu-json.ts';

/** Exit statuses of `check`, after qemu-img's. */
export const CHECK_STATUS = { FAILED: 1, CORRUPTIONS: 2, LEAKS: 3, UNSUPPORTED: 63 } as const;

export interface RunCheckOptions extends HostOptions {
  readonly repair?: 'leaks' | 'all' | undefined;
  readonly deep?: boolean | undefined;
  readonly format?: string | undefined;
  readonly forceShare?: boolean | undefined;
  readonly json: boolean;
  readonly quiet?: boolean | undefined;
}

/** Checks an image and prints what was found. @throws {CommandStatus} with the status, unless nothing is wrong */
export async function runCheck(context: CliContext, image: string, options: RunCheckOptions): Promise<void> {
  const { repair, deep, format, warn } = options;
  const name = parseImageName(image);
  if (!('path' in name)) throw new ImageError('UNSUPPORTED', 'only a file can be checked', { path: image });
  if (options.secretFile !== undefined) await tryPassphrase(name.path, options);
  const check = await checkImage(name.path, {
    repair,
    deep,
    format,
    lock: options.forceShare === true ? 'shared' : 'default',
    openStorage,
    gate: createGate(options),
    cache: new SharedBlockCache(DEFAULT_CACHE_BYTES),
    warn,
  }).catch((error: unknown) => {
    throw explainFormat(error, format);
  });
  if (!check.supported) {
    // qemu-img's words: that is what programs look for.
    context.stderr.write(`lunette: ${oneLine(image)}: This image format does not support checks (${check.format})\n`);
    throw new CommandStatus(CHECK_STATUS.UNSUPPORTED);
  }
  if (options.quiet !== true) for (const message of check.messages) context.stderr.write(`${oneLine(message)}\n`);
  context.stdout.write(options.json ? `${formatJson(checkMembers(image, check))}\n` : renderCheck(check));
  if (check.checkErrors > 0) throw new CommandStatus(CHECK_STATUS.FAILED);
  if (check.corruptions > 0) throw new CommandStatus(CHECK_STATUS.CORRUPTIONS);
  if (check.leaks > 0) throw new CommandStatus(CHECK_STATUS.LEAKS);
}

/** Whether a passphrase opens the image. What else may be wrong with it is for the check to say. */
async function tryPassphrase(path: string, options: RunCheckOptions): Promise<void> {
  const { format, forceShare } = options;
  const lock = forceShare === true ? 'shared' : 'default';
  try {
    await (await createHost(options).open(path, { format, readOnly: true, alone: true, lock })).close();
  } catch (error) {
    if (['ENCRYPTED', 'NOT_FOUND', 'ACCESS', 'INVALID', 'LOCKED'].includes(codeOf(error))) throw error;
  }
}
