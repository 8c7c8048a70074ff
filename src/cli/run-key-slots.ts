import { codeOf, LunetteError, UsageError } from '../../formats/core/errors.ts';
import { amendQcow2KeySlots, type KeySlotChange } from '../../formats/index.ts';
import { openStorage } from '../io/open-storage.ts';
import { explainFormat } from '../open/host.ts';
import { parseImageName } from '../open/name.ts';
import { readSecrets, secretsOf } from '../open/secrets.ts';
import type { CliContext } from './context.ts';

const PREFIX = 'encrypt.';

export interface RunKeySlotsOptions {
  readonly format?: string | undefined;
  /** Passphrases that open the image: to add another one. */
  readonly secretFile?: readonly string[] | undefined;
  /** Erase the last one, too. */
  readonly force?: boolean | undefined;
  readonly quiet?: boolean | undefined;
}

/** What a command line asks for. Passphrases are named by their files. */
interface KeySlotRequest extends Omit<KeySlotChange, 'newSecret' | 'oldSecret'> {
  readonly newSecretFile?: string | undefined;
  readonly oldSecretFile?: string | undefined;
}

/** Whether options are about key slots. */
export function asksForKeySlots(values: Readonly<Record<string, string>>): boolean {
  return Object.keys(values).some((name) => name.startsWith(PREFIX));
}

/** Adds a passphrase to an encrypted image, or takes one away, and says which key slots that were. */
export async function runKeySlots(
  context: CliContext,
  name: string,
  values: Readonly<Record<string, string>>,
  options: RunKeySlotsOptions,
): Promise<void> {
  const { newSecretFile, oldSecretFile, ...request } = readKeySlotOptions(values);
  const { format, secretFile, force } = options;
  if (format !== undefined && format !== 'qcow2') {
    throw new LunetteError('UNSUPPORTED', `${format} images have no key slots`, { path: name });
  }
  const [newSecret] = newSecretFile === undefined ? [] : await readSecrets(newSecretFile);
  const oldSecrets = oldSecretFile === undefined ? [undefined] : await readSecrets(oldSecretFile);
  const storage = await openStorage(parseImageName(name).path, { readOnly: false });
  try {
    await storage.lock('write');
    const slots = await firstThatOpens(oldSecrets, (oldSecret) =>
      amendQcow2KeySlots(storage, { ...request, newSecret, oldSecret, force }, secretsOf(secretFile)),
    );
    if (options.quiet === true) return;
    const what = request.state === 'active' ? 'has the new passphrase' : 'is free';
    for (const slot of slots) context.stdout.write(`Key slot ${slot} ${what}.\n`);
  } catch (error) {
    if (error instanceof LunetteError) error.path ??= name;
    throw explainFormat(error, format);
  } finally {
    await storage.close();
  }
}

/** A passphrase file may end with a newline that is none of the passphrase: it is tried both ways. */
async function firstThatOpens<S, T>(secrets: readonly S[], act: (secret: S) => Promise<T>): Promise<T> {
  const [first, ...more] = secrets as [S, ...S[]];
  try {
    return await act(first);
  } catch (error) {
    const [second] = more;
    if (codeOf(error) !== 'ENCRYPTED' || second === undefined) throw error;
    return act(second);
  }
}

function readKeySlotOptions(values: Readonly<Record<string, string>>): KeySlotRequest {
  const other = Object.keys(values).find((name) => !name.startsWith(PREFIX));
  if (other !== undefined) refuse(`${other} and key slots are amended one after the other, not together`);
  const { state, format = 'luks', keyslot, ...rest } = unprefixed(values);
  const {
    'iter-time': iterTime,
    'new-secret-file': newSecretFile,
    'old-secret-file': oldSecretFile,
    ...unknown
  } = rest;
  for (const name of Object.keys(unknown)) {
    if (name === 'new-secret' || name === 'old-secret') {
      refuse(`passphrases are in files: ${PREFIX}${name}-file=FILE`);
    }
    refuse(`${PREFIX}${name} cannot be amended`);
  }
  if (format !== 'luks') refuse(`${PREFIX}format is luks, not ${format}`);
  if (state !== 'active' && state !== 'inactive') {
    refuse(`${PREFIX}state is active (add a passphrase) or inactive (take one away)`);
  }
  return {
    state: state as KeySlotRequest['state'],
    newSecretFile,
    oldSecretFile,
    keyslot: numberOf('keyslot', keyslot),
    iterTimeMs: numberOf('iter-time', iterTime),
  };
}

function unprefixed(values: Readonly<Record<string, string>>): Partial<Record<string, string>> {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name.slice(PREFIX.length), value]));
}

function numberOf(name: string, value: string | undefined): number | undefined {
  if (value === undefined) return undefined;
  if (!/^\d{1,9}$/.test(value)) refuse(`${PREFIX}${name} is a number, not ${value}`);
  return Number(value);
}

function refuse(why: string): never {
  throw new UsageError('USAGE', why, { help: 'lunette amend -o help IMAGE lists what can be amended.' });
}
