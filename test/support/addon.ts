import { native } from '../../src/native/binding.ts';
import { requireCondition, type Skip } from './requires.ts';

/** Why tests of native code cannot run: false when they can. Where the addon is switched off on purpose that is no failure in CI. */
export function requireAddon(): Skip {
  if (process.env.LUNETTE_NATIVE === '0') return 'LUNETTE_NATIVE=0';
  return requireCondition(native !== undefined, 'the addon is not built: npm run build:native');
}
