import { promisify } from 'node:util';

/**
 * As util.promisify, for a function that is looked up at the first call: the part of Node that it is in need not be loaded until then
 * (scripts/build.mjs).
 */
export function promisifyLater<A extends unknown[], R>(
  find: () => (...args: [...A, (error: Error | null, result: R) => void]) => void,
): (...args: A) => Promise<R> {
  let found: ((...args: A) => Promise<R>) | undefined;
  return (...args) => {
    found ??= promisify(find()) as unknown as (...args: A) => Promise<R>;
    return found(...args);
  };
}
