import { native } from './binding.ts';
import { EINVAL, isUnsupported, systemError } from './errno.ts';

/**
 * Swaps what two names of files lead to, in one step: at no moment does either lead nowhere.
 *
 * @returns false where addon, kernel or file system cannot: nothing was changed. @throws other errors, with errno's name as their code
 */
export function exchangeNames(one: string, other: string): boolean {
  const result = native?.exchangeNames?.(one, other);
  if (result === undefined || isUnsupported(result) || result === EINVAL) return false;
  if (result < 0) throw systemError(result, 'renameat2');
  return true;
}
